"""Evolution alone on MNIST, end to end: 784-256-10, 256 antithetic pairs of rank-1 noise.

    grlu train mnist_es

Goal: 96.5 % in 15 minutes on 2 cores.

Not reached yet: test accuracy 95.5 % after 20 epochs (`trainer.epochs=20`, seed 0), 4 minutes of a
core; several seeds are still to be run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "mnist", "validation": 5000},
            "model": {"name": "mlp", "hidden": (256,)},
            "trainer": {
                "name": "evolution",
                "population": 512,
                "rank": 1,
                "sigma": 0.02,
                "epochs": 20,
                "batch_size": 128,
                "optimizer": "adam",
                "learning_rate": 5e-3,
                "average": 0.999,
            },
            "run": {"rows_per_epoch": 1},
        }
    )
