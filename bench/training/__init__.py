"""What trains a model: losses, trainers, checkpoints, devices, and the record of a training."""
