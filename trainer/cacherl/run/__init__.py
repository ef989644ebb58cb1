"""Runs: one TOML file a run, commands that train, evaluate and report, each going on where it was stopped."""
