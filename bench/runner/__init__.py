"""Runs stages: the scheduler, local workers, SLURM, Ray, and the progress on screen."""
