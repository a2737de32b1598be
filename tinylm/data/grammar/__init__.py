"""Grammars that write documents and know the probability of each; the corpora built from them."""
