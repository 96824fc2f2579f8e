"""Is every method what its paper says? References a second time (references.py), checks of the real trainers (checks.py), one table."""
