"""GRLU on MNIST."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "mnist", "validation": 5000},
            "model": {"name": "mlp", "hidden": (256,), "activation": "relu"},
            "trainer": {
                "name": "grlu",
                "samples": 16,
                "sigma": 0.1,
                "noise": "orthogonal",
                "site": "pre",
                "epochs": 10,
                "batch_size": 1,
                "optimizer": "sgd",
                "learning_rate": 1e-3,
            },
        }
    )
