"""ONNX: a neutral graph with brecq's own quantize operators, lowered to what a runtime executes."""
