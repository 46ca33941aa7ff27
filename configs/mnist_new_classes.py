"""New classes on MNIST: a backbone grown by evolution on 0-4, a GRLU head that learns 5-9 on it.

    grlu train mnist_new_classes
    grlu train mnist_new_classes stages.slow.trainer.epochs=0   # the control: a random backbone

The head sees each image of the new classes once, one at a time; it is tested on them.

Not yet trained to its end.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "mnist", "validation": 5000},
            "stages": [
                {
                    "name": "slow",
                    "dataset": {"classes": (0, 1, 2, 3, 4)},
                    "model": {"name": "mlp", "hidden": (256,)},
                    "trainer": {
                        "name": "evolution",
                        "population": 512,
                        "rank": 1,
                        "sigma": 0.02,
                        "epochs": 8,
                        "batch_size": 128,
                        "optimizer": "adam",
                        "learning_rate": 5e-3,
                    },
                },
                {
                    "name": "fast",
                    "dataset": {"classes": (5, 6, 7, 8, 9)},
                    "model": {"name": "mlp", "hidden": ()},
                    "trainer": {
                        "name": "grlu",
                        "samples": 16,
                        "noise": "orthogonal",
                        "site": "active",
                        "output_noise": "softmax",
                        "output_rate": 2.0,
                        "epochs": 1,
                        "batch_size": 1,
                        "learning_rate": 2e-3,
                    },
                },
            ],
            "run": {"rows_per_epoch": 1},
        }
    )
