"""Checkpoints of a run: saved asynchronously, kept by age and by merit, restored bit for bit."""

from checkpoints.store import Checkpoints, Restored

__all__ = ["Checkpoints", "Restored"]
