"""Surgery on a finished model: what comes out is a model like any other."""

from tinylm.adapt.quantize import quantize

__all__ = ["quantize"]
