"""`rlalign doctor`: what this machine has, what a configuration needs of it."""
