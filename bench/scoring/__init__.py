"""Computes the numbers of a cell from verdicts and log-probabilities."""
