"""Import from and export to Hugging Face's model folders."""

from tinylm.interop.huggingface import export_huggingface, load_huggingface, load_huggingface_model

__all__ = ["export_huggingface", "load_huggingface", "load_huggingface_model"]
