"""Backprop on all of MNIST, the baseline of docs/results.md: 784-256-10, batch 1.

    grlu train mnist_backprop_full

Test accuracy 98.30 ± 0.04 % after 10 epochs on all 60,000 images. Seeds 0-2 train at once, in about
1 minute on 2 busy cores; `docs/results.md` has the whole table.
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
                "dropout": 0.3,
            },
            "trainer": {
                "name": "backprop",
                "epochs": 10,
                "batch_size": 1,
                "optimizer": "sgd",
                "learning_rate": 0.012,
            },
            "run": {"seeds": 3},
        }
    )
