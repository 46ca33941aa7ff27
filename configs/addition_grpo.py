"""Adding numbers of two digits: supervised, then by GRPO from whether the sum is right.

    grlu train addition_grpo

Goal: 20 points more exact answers on unseen pairs than after the supervised stage.

Not yet trained to its end.
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
                        "epochs": 2,
                        "batch_size": 32,
                        "optimizer": "adam",
                        "learning_rate": 0.001,
                    },
                },
            ],
            "run": {"rows_per_epoch": 8},
        }
    )
