"""Dependence of each example's reward on each value of a network."""
