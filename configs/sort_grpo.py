"""Sorting four digits: supervised, then by GRPO from whether the answer is right.

    grlu train sort_grpo

Goal: from about 50 % exact answers after the supervised stage to at least 85 %.

Not yet trained to its end.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "sort"},
            "stages": [
                {
                    "name": "supervised",
                    # Few enough for half of the answers to be wrong still.
                    "dataset": {"subset": 2560},
                    "model": {"name": "gpt", "layers": 2, "heads": 4, "width": 64},
                    "trainer": {
                        "name": "backprop",
                        "objective": "lm",
                        "optimizer": "adamw",
                        "weight_decay": 0.01,
                        "clip": 1.0,
                        "epochs": 1,
                        "batch_size": 64,
                        "learning_rate": 0.001,
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
                        "epochs": 1,
                        "batch_size": 32,
                        "optimizer": "adam",
                        "learning_rate": 0.001,
                    },
                },
            ],
            "run": {"rows_per_epoch": 8},
        }
    )
