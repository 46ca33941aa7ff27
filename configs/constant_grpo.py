"""The smallest policy gradient: GRPO learns to answer 7 to every prompt.

    grlu train constant_grpo

The fraction of sevens rises from 1 in 12 to 99.9 % (seeds 0-2 at once, 30 s on one core).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "copy", "digits": 4, "examples": 2000},
            "model": {"name": "gpt", "layers": 2, "heads": 4, "width": 64},
            "trainer": {
                "name": "grpo",
                "rewards": ("token:9",),
                "discount": 0.0,
                "samples": 8,
                "epochs": 1,
                "batch_size": 16,
                "optimizer": "adam",
                "learning_rate": 0.001,
            },
            "run": {"rows_per_epoch": 4},
        }
    )
