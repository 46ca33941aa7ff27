"""GRLU from reward alone, a quarter of the units winning, 128 pairs per example.

    grlu train mnist_topk_n128

Test accuracy 98.27 ± 0.04 % after 10 epochs on all 60,000 images, seeds
0-2 at once, about 5 minutes on 2 busy cores; `docs/results.md` has the whole table.
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
                "activation": "topk",
                "topk": 0.25,
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
