"""Ten sparse hidden layers, 2 % active, learned from reward alone, one example at a time.

    grlu train mnist_sparse10
    grlu train mnist_sparse10 trainer.name=backprop      the exact gradient of the same network

RESULT
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "mnist", "validation": 5000, "crop": 1},
            "model": {
                "name": "sparse_mlp",
                "hidden": (1000,) * 10,
                "winners": (20,),
                "among": "groups",
            },
            "trainer": {
                "name": "grlu",
                # As many directions as make the credit of 10 x 20 + 10 active units exact: 212.
                "samples": "auto",
                "noise": "orthogonal",
                "sigma": 1e-3,
                # Sparse networks are smooth between switches: the clean pass is baseline enough.
                "antithetic": False,
                "epochs": 24,
                "batch_size": 1,
                "optimizer": "sgd",
                "learning_rate": 0.1,
            },
        }
    )
