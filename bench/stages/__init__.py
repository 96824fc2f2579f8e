"""Stages, one kind a file: `run(settings, run) -> Outcome` reads input folders and writes the output folder."""
