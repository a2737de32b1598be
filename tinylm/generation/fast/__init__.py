"""Faster ways to the same texts: tuned, compiled and speculative decoding."""
