"""The controlled world: small tasks whose true preference is known, and models tiny enough to train on a laptop."""
