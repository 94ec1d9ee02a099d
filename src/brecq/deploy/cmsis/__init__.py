"""CMSIS-NN: a completed program as C for Arm Cortex-M: weights in arrays, and calls of its int8 and int4 kernels."""
