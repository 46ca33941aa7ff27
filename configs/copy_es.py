"""Copying four digits by low-rank evolution, from reward alone: one per digit that is right.

    grlu train copy_es

Test, unseen questions (seed 0): all answers exact when the likeliest digits are taken, and 99.8 %
of drawn answers; 2 minutes on one core. Of the answers drawn in training 80 % are exact after 600
steps of 2,136.
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
