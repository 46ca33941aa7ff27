"""Configs: loading, schemas, values and paths."""
