"""The record of a run: what is written into its folder, and the one reader of it.

The reader (`run_folder`) needs neither Ray nor torch. `docs/run-folder.md` describes the files.
"""
