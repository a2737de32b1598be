"""Text generation: sampling, beam search, speculative decoding.

PyTorch is imported with the first name that needs it, so that options can be checked before.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylm.generation.beam import beam_search as beam_search
    from tinylm.generation.fast.speculative import SpeculativeGenerator as SpeculativeGenerator
    from tinylm.generation.generate import Generator as Generator
    from tinylm.generation.options import BeamConfig as BeamConfig
    from tinylm.generation.options import SamplingConfig as SamplingConfig
    from tinylm.generation.text import Completion as Completion

_MODULES = {
    "BeamConfig": "options",
    "Completion": "text",
    "Generator": "generate",
    "SamplingConfig": "options",
    "SpeculativeGenerator": "fast.speculative",
    "beam_search": "beam",
}
__all__ = ["BeamConfig", "Completion", "Generator", "SamplingConfig", "SpeculativeGenerator", "beam_search"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"tinylm.generation.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'tinylm.generation' has no attribute {name!r}")
