"""Baselines, written independently of the library."""
