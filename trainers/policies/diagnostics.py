"""Checks of a policy's metrics in training, with the likely cause of each failure."""

from collections.abc import Mapping

# Tolerance for float32 log-probabilities of a token in sampling and in training.
_ROUNDING = 1e-3


def checklist(
    values: Mapping[str, float], *, off_policy: bool, beta: float = 0.0
) -> list[tuple[bool, str]]:
    """Return the checks as pairs: True if it passed, and a sentence.

    Args:
        values: a policy's metrics, means over some steps.
        off_policy: True if each rollout serves several updates.
        beta: weight of the KL penalty.
    """
    v, found = values, []

    def check(passed: bool, finding: str, cause: str) -> None:
        found.append((passed, finding if passed else f"{finding}: {cause}"))

    check(
        v["p_error"] < _ROUNDING,
        f"probabilities sum to 1 within {v['p_error']:.1g}",
        "the model's logits are not finite",
    )
    check(
        v["mismatch"] < _ROUNDING,
        f"log-probabilities in sampling and in training differ by at most {v['mismatch']:.1g}",
        "the model's cached pass and its full pass differ",
    )
    ratio = f"the ratio before the first update is {v['ratio']:.4f}"
    check(abs(v["ratio"] - 1) < _ROUNDING, ratio, "it must be 1")
    gradient = f"the gradient norm is {v['gradient']:.2g}"
    check(v["gradient"] > 0, gradient, "no signal: the weights do not move")
    check(
        v["entropy"] > 0.01,
        f"the entropy is {v['entropy']:.2g} nats per token",
        "the samples of a prompt are all the same; a higher trainer.temperature may help",
    )
    repetition = f"{v['repetition']:.0%} of the tokens repeat the preceding one"
    check(v["repetition"] < 0.9, repetition, "the model repeats itself")
    if off_policy:
        check(
            v["clip_fraction"] < 0.5,
            f"{v['clip_fraction']:.0%} of the tokens are clipped",
            "a lower trainer.learning_rate or fewer trainer.updates may help",
        )
    check(True, f"advantages: mean {v['advantage']:.2g}, sd {v['advantage_spread']:.2g}", "")
    if "zero_std" in v:
        check(
            v["zero_std"] < 1,
            f"{v['zero_std']:.0%} of the prompts have samples with equal rewards only",
            "no signal; is the reward the same for every completion, never earned, or always "
            "earned?",
        )
    if "kl" in v:
        check(
            v["kl"] < 10 * v["length"] and beta * v["kl"] <= max(1.0, abs(v["reward"])),
            f"the KL divergence is {v['kl']:.2g} nats per completion",
            "it explodes, or its penalty exceeds the reward; another trainer.beta_kl or a lower "
            "learning rate may help",
        )
    if "cut_off" in v:
        cut_off = f"{v['cut_off']:.0%} of the completions are cut off before an end token"
        check(v["cut_off"] < 1, cut_off, "a longer trainer.horizon may help")
    return found
