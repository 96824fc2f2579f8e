"""The graph of a cell: its stages, its inputs, its judge stages, and the stages left to run."""
