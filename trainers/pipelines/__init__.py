"""Pipelines: runs that build on other runs."""
