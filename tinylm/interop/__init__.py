"""Import from and export to the formats of other programs: Hugging Face, nanoGPT, llama2.c, llama.cpp."""

from tinylm.interop.gguf import export_gguf
from tinylm.interop.huggingface import export_huggingface, load_huggingface, load_huggingface_model
from tinylm.interop.llama2c import export_llama2c, load_llama2c, read_tokenizer_bin
from tinylm.interop.nanogpt import find_meta, load_nanogpt, read_meta

__all__ = [
    "export_gguf",
    "export_huggingface",
    "export_llama2c",
    "find_meta",
    "load_huggingface",
    "load_huggingface_model",
    "load_llama2c",
    "load_nanogpt",
    "read_meta",
    "read_tokenizer_bin",
]
