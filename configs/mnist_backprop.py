"""Backprop on MNIST: the baseline for mnist_grlu, with its model, plain SGD and batch 1.

    grlu train mnist_backprop

Test accuracy 98.24 ± 0.10 % after 10 epochs on 55,000 images (seeds 0-2, `run.seeds=3`, 19 s on 2
cores for the three). The other 5,000 training images are the validation split.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "mnist", "validation": 5000},
            "model": {"name": "mlp", "hidden": (256,), "activation": "relu"},
            "trainer": {
                "name": "backprop",
                "epochs": 10,
                "batch_size": 1,
                "optimizer": "sgd",
                "learning_rate": 4e-3,
            },
        }
    )
