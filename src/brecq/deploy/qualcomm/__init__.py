"""Qualcomm's AI Engine Direct: a float ONNX file with its weights on their grids, and AIMET's encodings beside it."""
