"""Two-digit addition: supervised learning, then GRPO with reward 1 for the right sum.

    grlu train addition_grpo

Exact sums on unseen pairs of numbers (seeds 0-2): when sampled, 29.1 ± 4.1 % after the supervised
stage (`stages.grpo.trainer.epochs=0`) and 69.7 ± 0.6 % after both; with greedy decoding, 76 ± 13
and 85.9 ± 2.6 %. All three seeds at once take 2.5 minutes on one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "addition"},
            "stages": [
                {
                    "name": "supervised",
                    "model": {"name": "gpt", "layers": 2, "heads": 4, "width": 64},
                    "trainer": {
                        "name": "backprop",
                        "objective": "lm",
                        "optimizer": "adamw",
                        "weight_decay": 0.01,
                        "clip": 1.0,
                        "epochs": 2,
                        "batch_size": 64,
                        "learning_rate": 0.003,
                    },
                },
                {
                    "name": "grpo",
                    "start": "supervised",
                    "trainer": {
                        "name": "grpo",
                        "rewards": ("exact", "share"),
                        "reward_weights": (1.0, 0.5),
                        "samples": 8,
                        "epochs": 4,
                        "batch_size": 32,
                        "optimizer": "adam",
                        "learning_rate": 0.0003,
                    },
                },
            ],
            "run": {"rows_per_epoch": 8},
        }
    )
