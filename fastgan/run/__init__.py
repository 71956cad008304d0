"""The run directory: checkpoints, log, pictures and report."""
