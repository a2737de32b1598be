"""Bulk encoding and training with NumPy. The results equal those of textbook.py, which is the version to read."""
