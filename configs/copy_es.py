"""Copying four digits by low-rank evolution, from reward alone: one per digit that is right.

    grlu train copy_es

Of the answers that are drawn in training, the mean of 100 steps, 80 % are exact after 600 steps,
99.6 % after 900 and 99.9 % at the end (seed 0); 90 seconds of one core, evaluation left out. With
half the epochs, and so a cosine twice as fast, 22 %. Not yet tested on unseen questions.
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
