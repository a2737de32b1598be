"""Text generation: sampling, beam search, speculative decoding."""

from tinylm.generation.beam import BeamConfig, beam_search
from tinylm.generation.fast.speculative import SpeculativeGenerator
from tinylm.generation.generate import Generator
from tinylm.generation.sampling import SamplingConfig
from tinylm.generation.text import Completion

__all__ = ["BeamConfig", "Completion", "Generator", "SamplingConfig", "SpeculativeGenerator", "beam_search"]
