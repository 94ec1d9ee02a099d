"""Channels-last int8 programs: what LiteRT and CMSIS-NN share, from the completed program to operators on arrays."""
