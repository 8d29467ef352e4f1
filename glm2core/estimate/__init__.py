"""What a training run will need of memory and disk, and whether it fits."""
