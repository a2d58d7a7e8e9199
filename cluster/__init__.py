"""The driver: the loop, placement, failures, metrics, command line. Imports all, is imported by none."""
