"""A run's checkpoints: written whole or not at all, verified before use, resumed bit by bit."""
