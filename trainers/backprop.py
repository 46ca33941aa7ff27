"""Backprop: the exact gradient of the same reward."""

import grlu
from trainers.gradient import gradient_settings

Backprop = gradient_settings("Backprop", grlu.Backprop, "The exact gradient, the yardstick.")
