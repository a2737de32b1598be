"""ModuleDecoder: a key/value cache for models with plug-ins, read by the modules themselves.

A cache is correct only if a token depends on earlier ones through their keys and values alone. No test can prove this
for code that tinylm does not know, so the plug-in has to promise it (`supports_cache`, model/plugin.py). A promise that
fails within the first few tokens is detected.
"""

import torch
from torch import Tensor, nn

from tinylm.errors import first_line
from tinylm.generation.fast.cached import CachedDecoder
from tinylm.known import mixed_part, unknown_part
from tinylm.model import RingKVCache, TransformerLM
from tinylm.plugins import Part

# PyTorch's own that treat each position by itself.
POINTWISE = {
    *(f"torch.nn.{name}" for name in ("RMSNorm", "LayerNorm", "Identity")),
    *(f"torch.nn.{name}" for name in ("SiLU", "Mish", "ELU", "SELU", "CELU", "GELU", "ReLU", "ReLU6", "LeakyReLU",
                                      "Softplus", "Hardswish", "Tanh", "Sigmoid")),
    *(f"torch.nn.functional.{name}" for name in ("silu", "mish", "elu", "selu", "celu", "gelu", "relu", "relu6",
                                                 "leaky_relu", "softplus", "hardswish", "tanh", "sigmoid")),
}  # fmt: skip
PROBE = 6  # tokens with which a promise is checked


def supports_cache(part: Part) -> bool:
    """Whether a plug-in promises to be correct with a cache."""
    return part.class_path in POINTWISE or bool(getattr(part.load(), "supports_cache", False))


class ModuleDecoder(CachedDecoder):
    """Reads one token of each row by the model's modules. Arguments and errors are those of `CachedDecoder`."""

    @staticmethod
    def unsuited_part(model: nn.Module) -> str | None:
        """Describes the part of a model that cannot be read with a cache; None if there is none."""
        if (reason := unknown_part(model, plugins=True) or mixed_part(model)) is not None:
            return reason
        assert isinstance(model, TransformerLM)
        for field, part in model.config.parts.items():
            if not supports_cache(part):
                return f"{field} is the plug-in {part}, which does not promise supports_cache"
        return None

    def step(self, ids: Tensor, cache: RingKVCache) -> Tensor:
        """Reads the next token of each row, (B,), and returns the logits after it, (B, V)."""
        logits = self.model(ids[:, None], cache=cache)[:, 0]
        self._end_documents(ids, cache)
        return logits

    @torch.inference_mode()
    def broken_promise(self) -> str | None:
        """Describes the difference between the logits of a few tokens with and without a cache; None if they agree."""
        config, weight = self.model.config, self.model.embedding.weight
        count = min(PROBE, config.max_seq_len)
        ids = torch.arange(count, device=weight.device) * 7919 % config.vocab_size
        names = ", ".join(str(part) for part in config.parts.values())
        expected, cache = self.model(ids[None])[0], self.make_cache(1)
        try:
            with_cache = [self.model(token[None, None], cache=cache)[0] for token in ids]
        except Exception as error:  # whatever the user's code raises
            return f"{names} promises supports_cache, but fails with a cache ({first_line(error)})"
        error = (torch.cat(with_cache) - expected).abs().max().item()
        size = (expected.max() - expected.min()).item()
        exact = weight.dtype in (torch.float32, torch.float64)
        if error <= size * (1e-3 if exact else 0.1):
            return None
        return f"{names} promises supports_cache, but with a cache its logits differ by {error:.2g}"
