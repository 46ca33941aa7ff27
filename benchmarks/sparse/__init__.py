"""Measurements of sparse networks: cost per example, cosine of the estimates."""
