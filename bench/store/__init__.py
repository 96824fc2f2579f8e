"""Finished stages by key: identity, folders, manifests, locks, and the interface of a stage's function."""
