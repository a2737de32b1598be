"""Serving: many texts at once (engine.py), over HTTP and in the browser."""
