"""Probabilistic grammars that generate documents of exactly known probability, and the data generated from them."""
