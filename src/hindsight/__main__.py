"""`python -m hindsight` is the same as `hindsight`."""

from hindsight.cluster.cli import main

main()
