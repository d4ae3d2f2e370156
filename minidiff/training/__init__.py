"""Training: configuration, trainer, run directories, sweeps."""
