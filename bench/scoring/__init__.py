"""From verdicts and log-probabilities to the numbers of a cell."""
