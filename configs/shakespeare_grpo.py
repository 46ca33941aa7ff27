"""GRPO from scratch on tiny-shakespeare, with reward 1 per correct character.

    grlu train shakespeare_grpo

This corrects the original project's setting: it uses prompts of real text, a learnable horizon, and
the exact KL penalty towards a frozen bigram model.

Greedy accuracy (seeds 0-2) is .304 ± .010 on held-out and .287 ± .002 on test text. Each seed takes
5 minutes on one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "shakespeare", "length": 32, "stride": 8},
            "model": {"name": "gpt", "layers": 4, "heads": 4, "width": 128},
            "trainer": {
                "name": "grpo",
                "rewards": ("match",),
                "discount": 0.0,
                "reward_mode": "+1",
                "partial_logprob": 0.0,
                "advantage": "group_mean",
                "reference": "bigram",
                "kl": "exact",
                "beta_kl": 0.05,
                "kl_warmup_tokens": 20_000,
                "prompt": 32,
                "horizon": 1,
                "batch_size": 64,
                "samples": 32,
                "epochs": 1,
                "optimizer": "adamw",
                "learning_rate": 0.001,
                "clip": 1.0,
            },
            "run": {"rows_per_epoch": 20},
        }
    )
