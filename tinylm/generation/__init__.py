"""From a model to text."""

from tinylm.generation.generate import Generator
from tinylm.generation.sampling import SamplingConfig

__all__ = ["Generator", "SamplingConfig"]
