"""Turns the words of a command line into checked cells; all problems are reported at once."""
