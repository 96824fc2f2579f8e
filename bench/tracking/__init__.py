"""Trackers copy results from the store to a service such as Weights & Biases."""
