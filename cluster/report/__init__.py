"""Reads the folders of runs, without actors and Ray: anywhere, also while a run goes on."""
