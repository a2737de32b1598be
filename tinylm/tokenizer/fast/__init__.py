"""Bulk encoding and training with arrays; equal to textbook.py, which is the version to read."""
