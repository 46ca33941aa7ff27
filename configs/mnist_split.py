"""Split-MNIST, online: five tasks of two digits, one after the other, on a frozen autoencoder.

    grlu train mnist_split                                            # dense, GRLU
    grlu train mnist_split stages.task1.model.activation=topk stages.task1.model.topk=0.05
    grlu train mnist_split stages.task1.trainer.name=backprop         # dense, backprop
    grlu train mnist_split stages.slow.trainer.epochs=0               # the control: random

Every image is seen once, one at a time; the head answers the same question in each task, which of
the two digits it is (`renumber`; without it, `dataset.renumber=false`, which of all ten). Later
tasks take model and trainer over from the first. `grlu evaluate RUN` prints the accuracy after each
task on every task, its mean at the end, and what was forgotten; with `run.seeds=5` and spread.

Mean accuracy at the end and forgetting, seed 0, 1-3 minutes each: dense GRLU .640 and .442, top-k
.608 and .472, dense backprop .634 and .451; several seeds are still to be run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "mnist", "validation": 5000, "renumber": True},
            "stages": [
                {
                    "name": "slow",
                    "dataset": {"normalize": "unit"},
                    "model": {"name": "autoencoder", "hidden": (256,), "latent": 128},
                    "trainer": {
                        "name": "backprop",
                        "objective": "reconstruction",
                        "epochs": 10,
                        "batch_size": 128,
                        "optimizer": "adam",
                        "learning_rate": 1e-3,
                    },
                },
                {
                    "name": "task1",
                    "dataset": {"classes": (0, 1)},
                    "model": {"name": "mlp", "hidden": (256,)},
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
                        "schedule": "constant",
                    },
                },
                {"name": "task2", "start": "task1", "dataset": {"classes": (2, 3)}},
                {"name": "task3", "start": "task2", "dataset": {"classes": (4, 5)}},
                {"name": "task4", "start": "task3", "dataset": {"classes": (6, 7)}},
                {"name": "task5", "start": "task4", "dataset": {"classes": (8, 9)}},
            ],
            "run": {"rows_per_epoch": 1},
        }
    )
