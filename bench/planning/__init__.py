"""The graph of a cell: its stages, its inputs, its judging, and what is left to do."""
