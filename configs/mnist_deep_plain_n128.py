"""GRLU from reward alone in five hidden layers without skip connections, 128 pairs per example.

    grlu train mnist_deep_plain_n128

Test accuracy 95.70 ± 0.09 % after one epoch on all 60,000 images. Seeds 0-2 train at once, in about
10 minutes on 2 busy cores; `docs/results.md` has the whole table.
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
                "name": "mlp",
                "hidden": (256, 256, 256, 256, 256),
                "activation": "relu",
            },
            "trainer": {
                "name": "grlu",
                "samples": 128,
                "sigma": 0.1,
                "noise": "orthogonal",
                "site": "active",
                "epochs": 1,
                "batch_size": 1,
                "optimizer": "sgd",
                "learning_rate": 0.002,
            },
            "run": {"seeds": 3},
        }
    )
