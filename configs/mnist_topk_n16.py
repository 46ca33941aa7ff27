"""GRLU from reward alone, a quarter of the units winning, 16 pairs per example.

    grlu train mnist_topk_n16

Test accuracy 97.55 ± 0.08 % after 10 epochs on all 60,000 images, seeds
0-2 at once, about 2 minutes on 2 busy cores; `docs/results.md` has the whole table.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {
                "name": "mnist",
                "normalize": "centered",
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
                "samples": 16,
                "sigma": 0.1,
                "noise": "orthogonal",
                "site": "active",
                "output_noise": "softmax",
                "output_rate": 2.0,
                "epochs": 10,
                "batch_size": 1,
                "optimizer": "sgd",
                "learning_rate": 0.002,
            },
            "run": {"seeds": 3},
        }
    )
