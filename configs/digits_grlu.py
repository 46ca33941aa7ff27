"""GRLU on scikit-learn's handwritten digits: a small data set that needs no download.

    grlu train digits_grlu

Test accuracy 98.15 ± 0.16 % (seeds 0-2, `run.seeds=3`); 9 seconds on 2 cores for one seed.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "digits"},
            "model": {"name": "mlp", "hidden": (256,), "activation": "relu"},
            "trainer": {
                "name": "grlu",
                "samples": 64,
                "sigma": 0.1,
                "noise": "orthogonal",
                "site": "active",
                "epochs": 40,
                "batch_size": 8,
                "optimizer": "adam",
                "learning_rate": 2e-3,
            },
            "run": {"rows_per_epoch": 1},
        }
    )
