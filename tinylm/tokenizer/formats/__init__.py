"""Tokenizer files of other tools."""
