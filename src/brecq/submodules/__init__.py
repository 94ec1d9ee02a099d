"""Networks that are quantized in parts: submodules recorded with their calls, and put back."""
