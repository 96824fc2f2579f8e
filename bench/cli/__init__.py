"""From the words of a command line to checked cells; every fault is reported at once."""
