"""Inside a network: cost, attention, activations, gradients, predictions by layer."""
