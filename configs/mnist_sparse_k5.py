"""Three sparse hidden layers, 0.5 % active, learned from reward alone, one example at a time.

    grlu train mnist_sparse_k5
    grlu train mnist_sparse_k5 trainer.name=backprop      the exact gradient of the same network

Test accuracy 97.28 ± 0.08 % (seeds 0-2, tested once) after 24 epochs on 55,000 images; a seed takes
75 seconds on one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "mnist", "validation": 5000, "crop": 1},
            "model": {
                "name": "sparse_mlp",
                "hidden": (1000,) * 3,
                "winners": (5,),
                "among": "groups",
            },
            "trainer": {
                "name": "grlu",
                # As many directions as make the credit of 3 x 5 + 10 active units exact: 32.
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
