"""Checks of every method against its paper: second references, checks of the real trainers, and one table."""
