"""Inside a network: cost, attention, activations, gradients, predictions after each layer."""
