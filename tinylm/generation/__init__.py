"""From a model to text, and what a model makes of one."""

from tinylm.generation.generate import Generator
from tinylm.generation.sampling import SamplingConfig
from tinylm.generation.score import Score, score_text
from tinylm.generation.speculative import SpeculativeGenerator

__all__ = ["Generator", "SamplingConfig", "Score", "SpeculativeGenerator", "score_text"]
