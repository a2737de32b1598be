"""Bulk encoding and training with NumPy. Results equal the textbook files', which are the versions to read."""
