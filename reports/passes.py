"""What a step of a rule costs, in forward passes per example: the currency of comparisons."""

from collections.abc import Mapping
from typing import Any


def passes_per_example(config: Mapping[str, Any]) -> tuple[int, str] | None:
    """How many forward passes a rule needs per training example, and what they are, in words.

    The clean pass that comes beside noisy ones is not counted.

    Args:
        config: a run's.

    Returns:
        None for a trainer that this function does not know.
    """
    trainer = config.get("trainer") or {}
    name = trainer.get("name")
    if name in ("backprop", "feedback_alignment"):
        return 1, "1, the backward pass not counted"
    if name == "evolution":
        if trainer.get("batches") == "own":
            return 2, "2, an example being seen by one pair of the population"
        population = trainer["population"]
        return population, f"{population}, all members of the population"
    if name == "forward_gradient":
        samples = trainer["samples"]
        return samples, f"{samples}, their tangents not counted"
    if name == "svi":
        steps = trainer["svi_steps"]
        return 1 + steps, f"1 + S, S = {steps} steps of inference through the decoder"
    if name == "weight_perturbation":
        return 2 * trainer["samples"], f"2N, N = {trainer['samples']} antithetic pairs"
    if name in ("dpo", "reward_model"):
        return 4, "4, two completions drawn and learned from"
    if name in ("grpo", "ppo", "reinforce"):
        samples, updates = trainer["samples"], trainer["updates"]
        words = (
            f"K (1 + U), K = {samples} completions of a prompt, learned from U = {updates} times"
        )
        return samples * (1 + updates), words
    if name == "grlu":
        return _node_perturbation(trainer, config.get("model") or {})
    return None


def _node_perturbation(
    trainer: Mapping[str, Any], model: Mapping[str, Any]
) -> tuple[int, str] | None:
    samples = trainer["samples"]
    passes, words = 2 * samples, f"2N, N = {samples} antithetic pairs"
    if not trainer.get("antithetic", True):
        passes, words = samples, f"N = {samples}, against the clean pass"
    if trainer.get("layers", "together") == "together" or model.get("name") == "local_mlp":
        return passes, words
    if "hidden" not in model:
        return None
    layers = len(model["hidden"]) + (trainer.get("output") != "delta")
    return passes * layers, f"{words}, for each of {layers} layers apart"
