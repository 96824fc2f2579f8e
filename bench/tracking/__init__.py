"""Trackers: mirrors of the store, such as Weights & Biases."""
