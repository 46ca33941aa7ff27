"""Slow and fast on MNIST: a variational autoencoder's 50 means, frozen, and a GRLU head with N=16.

    grlu train mnist_vae_grlu

The autoencoder learns by backprop and without labels; the head, of one hidden layer, learns one
example at a time from the reward alone. Goal: a test accuracy of at least 97 %. Not yet trained to
its end.
"""

from ml_collections import ConfigDict

from configs import mnist_vae


def get_config() -> ConfigDict:
    slow = mnist_vae.get_config().to_dict()
    slow["trainer"]["epochs"] = 50
    head = {
        "name": "grlu",
        "samples": 16,
        "noise": "orthogonal",
        "site": "active",
        "output_noise": "softmax",
        "output_rate": 2.0,
        "epochs": 15,
        "batch_size": 1,
        "learning_rate": 2e-3,
    }
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "mnist", "validation": 5000},
            "stages": [
                {
                    "name": "slow",
                    "dataset": {"normalize": "unit", "binarize": "dynamic"},
                    "model": slow["model"],
                    "trainer": slow["trainer"],
                },
                {
                    "name": "fast",
                    "model": {"name": "mlp", "hidden": (256,)},
                    "trainer": head,
                },
            ],
            "run": {"rows_per_epoch": 1},
        }
    )
