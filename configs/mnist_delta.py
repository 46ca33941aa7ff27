"""GRLU with the output's exact delta and learned feedback, N pairs per example: 784-256-10.

    grlu train mnist_delta:n=16

The table shows test accuracy in % after 10 epochs on all 60,000 images, mean ± standard deviation
of seeds 0-2, which train at once, and the time on 2 busy cores. `docs/results.md` has the whole
table.

| N | accuracy | minutes |
|---|---|---|
| 1 | 97.96 ± 0.17 | 2 |
| 16 | 98.29 ± 0.08 | 2 |
| 128 | 98.31 ± 0.03 | 7 |
"""

from ml_collections import ConfigDict

MEMBERS = {
    "n=1": "one pair per example; 97.96 %",
    "n=16": "16 pairs per example; 98.29 %",
    "n=128": "128 pairs per example, dropout; 98.31 %",
}
ALIASES = {"mnist_delta_n1": "n=1", "mnist_delta_n16": "n=16", "mnist_delta_n128": "n=128"}

_BY_PAIRS = {
    "n=1": {"samples": 1, "noise": "rademacher", "learning_rate": 0.003},
    "n=16": {"samples": 16, "noise": "orthogonal", "learning_rate": 0.008},
    "n=128": {"samples": 128, "noise": "orthogonal", "learning_rate": 0.012},
}


def get_config(member: str = "n=16") -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {
                "name": "mnist",
                "validation": 0,
                **({"normalize": "centered"} if member == "n=1" else {}),
            },
            "model": {
                "name": "mlp",
                "hidden": (256,),
                "activation": "relu",
                **({"dropout": 0.3} if member == "n=128" else {}),
            },
            "trainer": {
                "name": "grlu",
                "sigma": 0.1,
                "site": "active",
                "output": "delta",
                "feedback": 3.0,
                "epochs": 10,
                "batch_size": 1,
                "optimizer": "sgd",
                **_BY_PAIRS[member],
            },
            "run": {"seeds": 3},
        }
    )
