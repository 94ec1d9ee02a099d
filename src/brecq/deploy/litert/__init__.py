"""LiteRT: a completed program as a `.tflite` file with int8 and int4 weights."""
