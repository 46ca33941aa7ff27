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

from typing import Any

from ml_collections import ConfigDict

from configs import mnist_autoencoder_grlu


def get_config() -> ConfigDict:
    config = mnist_autoencoder_grlu.get_config()
    slow, head = config.stages
    head["trainer"] |= {"epochs": 1, "schedule": "constant"}
    tasks: list[dict[str, Any]] = [
        {"name": f"task{i + 1}", "start": f"task{i}", "dataset": {"classes": (2 * i, 2 * i + 1)}}
        for i in range(5)
    ]
    tasks[0] |= {"start": None, "model": head["model"], "trainer": head["trainer"]}
    config.dataset.renumber = True
    config.stages = [slow, *tasks]
    return config
