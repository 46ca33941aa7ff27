"""The gradient trainer: an objective, a rule and an optimizer."""
