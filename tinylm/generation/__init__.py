"""From a model to text, and what a model makes of one."""

from tinylm.generation.beam import BeamConfig, beam_search
from tinylm.generation.exact_match import ExactMatch, exact_match, score_answers
from tinylm.generation.generate import Generator
from tinylm.generation.sampling import SamplingConfig
from tinylm.generation.score import Score, score_text
from tinylm.generation.speculative import SpeculativeGenerator
from tinylm.generation.text import Completion

__all__ = [
    "BeamConfig",
    "Completion",
    "ExactMatch",
    "Generator",
    "SamplingConfig",
    "Score",
    "SpeculativeGenerator",
    "beam_search",
    "exact_match",
    "score_answers",
    "score_text",
]
