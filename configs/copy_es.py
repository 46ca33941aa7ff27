"""Copying four digits by low-rank evolution, from reward alone: 1 per correct digit.

    grlu train copy_es

Answers to unseen test prompts (seed 0) are 100 % exact with greedy decoding and 99.8 % when
sampled; training takes 2 minutes on one core. After 600 of its 2,136 steps, 80 % of the samples are
exact.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "copy", "digits": 4},
            "model": {"name": "gpt", "layers": 2, "heads": 4, "width": 32},
            "trainer": {
                "name": "evolution",
                "objective": "completion_reward",
                "rewards": ("match",),
                "population": 128,
                "rank": 1,
                "sigma": 0.05,
                "epochs": 4,
                "batch_size": 16,
                "optimizer": "adam",
                "learning_rate": 0.01,
            },
            "run": {"rows_per_epoch": 8},
        }
    )
