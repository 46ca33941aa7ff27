"""GRLU with the output's delta and learned feedback in two layers with skips, 128 pairs.

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
                "output": "delta",
                "feedback": 3.0,
                "epochs": 10,
                "batch_size": 1,
                "optimizer": "sgd",
                "learning_rate": 0.006,
            },
            "run": {"seeds": 3},
        }
    )
