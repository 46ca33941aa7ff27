"""Split-MNIST, online: five tasks of two digits in sequence, on a frozen autoencoder.

    grlu train mnist_split run.seeds=5                                   # dense, GRLU
    grlu train mnist_split run.seeds=5 stages.task1.model.activation=topk  # 2 % of the units win
    grlu train mnist_split run.seeds=5 stages.task1.trainer.name=backprop  # dense, backprop
    grlu train mnist_split run.seeds=5 stages.slow.trainer.epochs=0        # the control: random

The head sees every image once, one at a time. It has 1,000 hidden units and two outputs that all
tasks share (`dataset.renumber=false` gives it ten outputs). Later tasks inherit the model and the
trainer of the first. `grlu evaluate RUN` prints the accuracy on every task after each task, the
final mean, and forgetting.

Final mean accuracy and forgetting in % (five seeds): the dense head reaches 65.1 ± 1.4 and
42.5 ± 1.7, the top-k head 71.6 ± 2.5 and 33.9 ± 3.2, and the dense head with backprop 64.7 ± 0.3
and 43.1 ± 0.3. docs/results.md has the rest.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import mnist_autoencoder_grlu


def get_config() -> ConfigDict:
    config = mnist_autoencoder_grlu.get_config()
    slow, head = config.stages
    head["model"] |= {"hidden": (1000,), "topk": 0.02, "topk_mode": "hard"}
    head["trainer"] |= {"epochs": 1, "schedule": "constant", "learning_rate": 5e-4}
    tasks: list[dict[str, Any]] = [
        {"name": f"task{i + 1}", "start": f"task{i}", "dataset": {"classes": (2 * i, 2 * i + 1)}}
        for i in range(5)
    ]
    tasks[0] |= {"start": None, "model": head["model"], "trainer": head["trainer"]}
    config.dataset.renumber = True
    config.stages = [slow, *tasks]
    return config
