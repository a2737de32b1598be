"""Run folders: their metrics, comparisons between them, and curves."""
