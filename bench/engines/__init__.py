"""What generates and scores: one interface, `load(model folder) -> engine` with `generate` and `logps`."""
