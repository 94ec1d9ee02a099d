"""OpenVINO: a completed program as an IR with weights of 2, 3, 4, 6 or 8 bits that runs on int8 kernels."""
