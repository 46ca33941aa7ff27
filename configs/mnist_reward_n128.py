"""GRLU from reward alone with 128 pairs per example: 784-256-10, batch 1.

    grlu train mnist_reward_n128

Test accuracy 98.31 ± 0.06 % (published: 94.45) after 10 epochs on all 60,000 images, seeds
0-2 at once, about 3 minutes on 2 busy cores; `docs/results.md` has the whole table.
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
                "hidden": (256,),
                "activation": "relu",
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
