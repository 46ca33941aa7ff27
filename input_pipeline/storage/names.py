"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the entry of `known` that is most similar to `name`."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
