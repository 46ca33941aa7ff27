"""Policy gradients, reward models and direct preference optimisation."""
