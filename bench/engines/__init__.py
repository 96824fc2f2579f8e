"""Engines load a model and run it: `generate` writes completions, `logps` scores them (see base.Engine)."""
