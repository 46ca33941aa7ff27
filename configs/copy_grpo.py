"""Copying four digits, learned by GRPO from reward alone: one per correct digit.

    grlu train copy_grpo

Unseen test prompts (seeds 0-2): 100 % exact with greedy decoding, 98.5 % when sampled; about 30
seconds.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "copy", "digits": 4},
            "model": {"name": "gpt", "layers": 2, "heads": 4, "width": 64},
            "trainer": {
                "name": "grpo",
                "rewards": ("match",),
                "discount": 0.0,
                "samples": 8,
                "epochs": 1,
                "batch_size": 32,
                "optimizer": "adam",
                "learning_rate": 0.001,
            },
            "run": {"rows_per_epoch": 8},
        }
    )
