"""One verb a file: `run(settings, run) -> Outcome` reads the input folders of a stage and writes its output folder."""
