"""Stages, one kind a file: `run(settings, run) -> Outcome` reads input folders and writes an output folder."""
