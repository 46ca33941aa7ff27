"""Registries of the trainers and of the sections of a config."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grlu
import input_pipeline
from models import MODELS
from trainers.config.schema import of_section
from trainers.devices.mesh import MeshSettings
from trainers.gradient.settings import SVI, gradient_settings
from trainers.gradient.trainer import Trainer
from trainers.loop.experiment import RunSettings
from trainers.loop.trainer import BaseTrainer
from trainers.policies.policy import PolicyTrainer
from trainers.policies.preference import PreferenceTrainer
from trainers.policies.settings import DPO, GRPO, PPO, Reinforce, RewardModel


class TrainerEntry(NamedTuple):
    """A trainer and its settings.

    Attributes:
        settings: dataclass with the keys of the config's `trainer` section.
        trainer: called with `(settings, make_model, steps_per_epoch, data)`, and with `judge` and
            `reference` if the config names them.
    """

    settings: Any
    trainer: Callable[..., BaseTrainer]

    def of_section(self, section: Mapping[str, Any]) -> Any:
        """Return the settings with the keys of a section's choice."""
        return of_section(self.settings, section)


def gradient_trainer(name: str, rule: type[grlu.Rule], summary: str) -> TrainerEntry:
    """Return the gradient trainer with a rule, whose fields become keys of its settings.

    `name` is that of the settings class, `summary` the line of `grlu list`.
    """
    return TrainerEntry(gradient_settings(name, rule, summary), Trainer)


# Add your own rule: `trainers.TRAINERS["mine"] = trainers.gradient_trainer("Mine", Mine, "...")`
TRAINERS: dict[str, TrainerEntry] = {
    "backprop": gradient_trainer("Backprop", grlu.Backprop, "The exact gradient, as a baseline."),
    "dpo": TrainerEntry(DPO, PreferenceTrainer),
    "evolution": gradient_trainer(
        "Evolution", grlu.EvolutionStrategy, "A population of noisy weights, ranked by reward."
    ),
    "feedback_alignment": gradient_trainer(
        "FeedbackAlignment", grlu.FeedbackAlignment, "The output error through random weights."
    ),
    "forward_gradient": gradient_trainer(
        "ForwardGradient", grlu.ForwardGradient, "Slopes along random directions (JVPs)."
    ),
    "grpo": TrainerEntry(GRPO, PolicyTrainer),
    "grlu": gradient_trainer(
        "GRLU", grlu.NodePerturbation, "Node perturbation: credit from noise and reward."
    ),
    "ppo": TrainerEntry(PPO, PolicyTrainer),
    "reinforce": TrainerEntry(Reinforce, PolicyTrainer),
    "reward_model": TrainerEntry(RewardModel, PreferenceTrainer),
    "svi": TrainerEntry(SVI, Trainer),
    "weight_perturbation": gradient_trainer(
        "WeightPerturbation", grlu.WeightPerturbation, "Noise on all weights at once."
    ),
}


SECTIONS: Any = {
    "dataset": input_pipeline.loader,
    "model": MODELS,
    "trainer": TRAINERS,
    "run": RunSettings,
    "mesh": MeshSettings,
}
"""Section of a config → what it builds, by name if there are several."""
