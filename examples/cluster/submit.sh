#!/usr/bin/env bash
# Submit a run, or its continuation, to the Ray cluster of this machine: submit.sh RECIPE [KEY=VALUE …]
set -euo pipefail
cd /shared/hindsight
recipe=$1
shift
exec .venv/bin/ray job submit --address http://127.0.0.1:8265 --no-wait -- \
  .venv/bin/hindsight train "$recipe" resume=auto "$@"
