"""tinylm trains small language models, from raw text to generated text.

    import tinylm
    model, tokenizer = tinylm.load("runs/small")

Importing the package is fast: PyTorch is imported when `load` is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylm.bundle import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from tinylm.bundle import load

        return load
    raise AttributeError(f"module 'tinylm' has no attribute {name!r}")
