"""The controlled world: small tasks with a known true preference, and models tiny enough to train on a
laptop.
"""
