"""Placement: which tensors are quantized, to how many bits and why not; quantizers put there, and what each costs."""
