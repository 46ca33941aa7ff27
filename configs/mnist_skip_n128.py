"""GRLU from reward alone through two hidden layers with skips, 128 pairs per example.

    grlu train mnist_skip_n128

RESULT
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {
                "name": "mnist",
                "validation": 0,
            },
            "model": {
                "name": "skip_mlp",
                "width": 256,
                "depth": 2,
            },
            "trainer": {
                "name": "grlu",
                "samples": 128,
                "sigma": 0.1,
                "noise": "orthogonal",
                "site": "active",
                "epochs": 10,
                "batch_size": 1,
                "optimizer": "sgd",
                "learning_rate": 0.008,
            },
            "run": {"seeds": 3},
        }
    )
