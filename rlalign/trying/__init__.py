"""Trying a trained model: what it writes beside its reference, and giving it away."""
