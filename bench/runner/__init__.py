"""Runs stages: scheduler, local workers, SLURM, Ray, progress."""
