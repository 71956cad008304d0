"""The ops: one file each, with the mathematics, the reference in plain PyTorch and what is faster than it."""
