"""Faster forms of what the model computes, each beside the plain form that defines it, and equal to it by a test."""
