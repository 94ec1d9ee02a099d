"""Partition: the graph is cut into the blocks that are reconstructed, and checked to be the network still."""
