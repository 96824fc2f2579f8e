"""Training of models: losses, trainers, checkpoints, devices, and the record of a training."""
