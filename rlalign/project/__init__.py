"""The folder that `rlalign init` writes, and what is in it."""
