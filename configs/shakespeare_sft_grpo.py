"""Tiny-shakespeare supervised, then by GRPO for the characters that follow.

    grlu train shakespeare_sft_grpo

Goal: the held-out reward rises, and the held-out nll by at most .1.

Not yet trained to its end.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "shakespeare", "length": 63},
            "stages": [
                {
                    "name": "supervised",
                    "model": {"name": "gpt", "layers": 4, "heads": 4, "width": 128},
                    "dataset": {"stride": 16},
                    "trainer": {
                        "name": "backprop",
                        "objective": "lm",
                        "optimizer": "adamw",
                        "weight_decay": 0.01,
                        "clip": 1.0,
                        "epochs": 1,
                        "batch_size": 32,
                        "learning_rate": 0.001,
                    },
                },
                {
                    "name": "grpo",
                    "start": "supervised",
                    "trainer": {
                        "name": "grpo",
                        "rewards": ("match",),
                        "discount": 0.0,
                        "reward_mode": "+1",
                        "partial_logprob": 0.0,
                        "advantage": "group_mean",
                        "reference": "start",
                        "kl": "exact",
                        "beta_kl": 0.003,
                        "kl_warmup_tokens": 20000,
                        "prompt": 32,
                        "horizon": 8,
                        "batch_size": 32,
                        "samples": 16,
                        "epochs": 1,
                        "optimizer": "adamw",
                        "learning_rate": 3e-05,
                        "clip": 1.0,
                    },
                },
            ],
            "run": {"rows_per_epoch": 10},
        }
    )
