"""Backprop on all of MNIST, the yardstick of the tables: 784-256-10, batch 1.

    grlu train mnist_backprop_full

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
