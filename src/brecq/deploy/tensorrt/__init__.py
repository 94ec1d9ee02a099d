"""NVIDIA TensorRT: ONNX files with explicit quantization, and the rules that they keep."""
