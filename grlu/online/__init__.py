"""Exact online learning, one example at a time, at the speed of matrix products."""
