"""Faster decoders: tuned, compiled and speculative."""
