"""Mixed precision: how sensitive a network is to each layer's bit-width, and which bits to choose within a budget."""
