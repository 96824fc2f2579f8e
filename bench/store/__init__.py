"""Finished stages by key: identity, folders, manifests, locks, and the interface that stages are written against."""
