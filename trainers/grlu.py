"""GRLU: node perturbation, a global reward and local updates."""

import grlu
from trainers.gradient import gradient_settings

GRLU = gradient_settings(
    "GRLU", grlu.NodePerturbation, "Node perturbation: credit from noise and reward."
)
