"""What differs between model families, and nothing else."""
