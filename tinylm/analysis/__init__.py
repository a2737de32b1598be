"""Inside a network: cost, attention, activations, gradients, predictions after each layer.

The functions take a model, token ids, (B, T), and document numbers or None, as `TransformerLM.forward` does. They run
the model in evaluation mode and leave it as it was.
"""
