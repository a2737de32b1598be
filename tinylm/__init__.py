"""tinylm: small language models, from raw text to a model that speaks."""
