"""Browsers: ONNX files, and a page that runs them with onnxruntime-web."""
