"""Converted programs: made of a prepared graph, read, rewritten; what they quantize, on which grids."""
