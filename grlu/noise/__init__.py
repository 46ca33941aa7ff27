"""Noise on units and parameters, sharded over devices."""
