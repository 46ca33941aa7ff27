"""What should hold of a policy in training, and what it means if it doesn't."""

from collections.abc import Mapping

# Log-probabilities of one token in sampling and in training, in float32.
_ROUNDING = 1e-3


def checklist(
    values: Mapping[str, float], *, off_policy: bool, beta: float = 0.0
) -> list[tuple[bool, str]]:
    """Whether each thing holds, and a sentence on it.

    Args:
        values: a policy's metrics, means over some steps.
        off_policy: whether a rollout is learned from several times.
        beta: the weight of the divergence.
    """

    def holds(fine: bool, what: str, otherwise: str) -> tuple[bool, str]:
        return fine, what if fine else f"{what}: {otherwise}"

    v = values
    checks = [
        holds(
            v["p_error"] < _ROUNDING,
            f"probabilities sum to 1 within {v['p_error']:.1g}",
            "the model's logits are not finite",
        ),
        holds(
            v["mismatch"] < _ROUNDING,
            f"log-probabilities in sampling and in training differ by at most {v['mismatch']:.1g}",
            "the cache of the model does not give what its full pass gives",
        ),
        holds(
            abs(v["ratio"] - 1) < _ROUNDING,
            f"the ratio before the first update is {v['ratio']:.4f}",
            "it must be 1",
        ),
        holds(
            v["gradient"] > 0,
            f"the gradient's norm is {v['gradient']:.2g}",
            "no signal: the weights do not move",
        ),
        holds(
            v["entropy"] > 0.01,
            f"the entropy is {v['entropy']:.2g} nats a token",
            "the samples of a prompt are all the same; a higher trainer.temperature may help",
        ),
        holds(
            v["repetition"] < 0.9,
            f"{v['repetition']:.0%} of the tokens repeat the one before",
            "the model says one thing over and over",
        ),
        holds(
            v["clip_fraction"] < 0.5,
            f"{v['clip_fraction']:.0%} of the tokens are clipped",
            "a lower trainer.learning_rate or fewer trainer.updates may help",
        ),
        (True, f"advantages: mean {v['advantage']:.2g}, deviation {v['advantage_spread']:.2g}"),
    ]
    if "zero_std" in v:
        checks.append(
            holds(
                v["zero_std"] < 1,
                f"{v['zero_std']:.0%} of the prompts have samples that are all paid alike",
                "no signal; is the reward the same whatever is written, too hard to be ever "
                "earned, or earned each time?",
            )
        )
    if "kl" in v:
        checks.append(
            holds(
                v["kl"] < 10 * v["length"] and beta * v["kl"] <= max(1.0, abs(v["reward"])),
                f"the divergence is {v['kl']:.2g} nats a completion",
                "it explodes, or costs more than is earned; another trainer.beta_kl or a lower "
                "learning rate may help",
            )
        )
    if "cut_off" in v:
        checks.append(
            holds(
                v["cut_off"] < 1,
                f"{v['cut_off']:.0%} of the completions are cut off before their end token",
                "a longer trainer.horizon may help",
            )
        )
    return checks if off_policy else [c for c in checks if "clipped" not in c[1]]
