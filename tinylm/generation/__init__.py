"""From a model to text, and what a model makes of one."""

from tinylm.generation.beam import BeamConfig, beam_search
from tinylm.generation.generate import Completion, Generator
from tinylm.generation.sampling import SamplingConfig
from tinylm.generation.score import Score, score_text

__all__ = ["BeamConfig", "Completion", "Generator", "SamplingConfig", "Score", "beam_search", "score_text"]
