"""The control of the slow-fast pipelines on MNIST: a random frozen backbone, and the same head.

    grlu train mnist_random_grlu

The backbone is that of `mnist_es_grlu`, with its initial weights; an autoencoder's, that of
`mnist_autoencoder_grlu`, is `grlu train mnist_autoencoder_grlu stages.slow.trainer.epochs=0`.

Test accuracy 96.44 % (seed 0), 30 s; several seeds are still to be run.
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
                    "model": {"name": "mlp", "hidden": (256,)},
                    "trainer": {"name": "evolution", "epochs": 0},
                },
                {
                    "name": "fast",
                    "model": {"name": "mlp", "hidden": (256,)},
                    "trainer": {
                        "name": "grlu",
                        "samples": 16,
                        "noise": "orthogonal",
                        "site": "active",
                        "output_noise": "softmax",
                        "output_rate": 2.0,
                        "epochs": 15,
                        "batch_size": 1,
                        "learning_rate": 2e-3,
                    },
                },
            ],
            "run": {"rows_per_epoch": 1},
        }
    )
