"""Changes to a trained model: freezing, LoRA adapters, a larger vocabulary, quantization."""

from tinylm.adapt.freeze import FreezeConfig, freeze, trainable_share
from tinylm.adapt.lora import LoRAConfig, add_lora, lora_layers, merge_lora, remove_lora, unmerge_lora, use_adapters
from tinylm.adapt.peft import load_adapter, save_adapter
from tinylm.adapt.quantize import quantize
from tinylm.adapt.vocabulary import grow_vocabulary

__all__ = [
    "FreezeConfig",
    "LoRAConfig",
    "add_lora",
    "freeze",
    "grow_vocabulary",
    "load_adapter",
    "lora_layers",
    "merge_lora",
    "quantize",
    "remove_lora",
    "save_adapter",
    "trainable_share",
    "unmerge_lora",
    "use_adapters",
]
