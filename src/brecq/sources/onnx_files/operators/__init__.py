"""What ONNX operators compute, in PyTorch: one function each, by name. Importing the modules fills the table."""

from brecq.sources.onnx_files.operators import elementwise, layers, reductions, resizing, shapes
from brecq.sources.onnx_files.operators.call import OPERATORS, Call, Value, as_tensor

__all__ = ["OPERATORS", "Call", "Value", "as_tensor", "elementwise", "layers", "reductions", "resizing", "shapes"]
