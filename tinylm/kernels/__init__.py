"""Faster versions of the model's computations; a test compares each with the plain version that defines it."""
