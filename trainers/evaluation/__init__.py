"""Evaluation of variational autoencoders beyond the metrics of training."""
