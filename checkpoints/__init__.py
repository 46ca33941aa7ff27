"""Checkpoints of a run: saved asynchronously, kept by age and score, restored bit-identically."""

from checkpoints.store import Checkpoints, Restored

__all__ = ["Checkpoints", "Restored"]
