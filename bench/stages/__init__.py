"""Stages, one kind a file: `run(settings, run) -> Outcome` reads the inputs' folders and writes its own."""
