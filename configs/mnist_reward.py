"""GRLU from reward alone with N pairs per example: 784-256-10, batch 1.

    grlu train mnist_reward:n=16

The table shows test accuracy in % after 10 epochs on all 60,000 images, mean ± standard deviation
of seeds 0-2, which train at once, and the time on 2 busy cores. `docs/results.md` has the whole
table.

| N | ReLU | published | minutes | top-k 0.25 | minutes |
|---|---|---|---|---|---|
| 1 | 96.00 ± 0.06 | about 90 | 2 | 95.84 ± 0.17 | 2 |
| 16 | 97.64 ± 0.05 | 92.83 | 2 | 97.55 ± 0.08 | 2 |
| 128 | 98.28 ± 0.05 | 94.45 | 3 | 98.27 ± 0.04 | 5 |
"""

from ml_collections import ConfigDict

MEMBERS = {
    "n=1": "one pair per example; 96.00 %",
    "n=16": "16 pairs per example; 97.64 %",
    "n=128": "128 pairs per example; 98.28 %",
    "n=1,topk=0.25": "one pair, a quarter of the units winning; 95.84 %",
    "n=16,topk=0.25": "16 pairs, a quarter of the units winning; 97.55 %",
    "n=128,topk=0.25": "128 pairs, a quarter of the units winning; 98.27 %",
}
ALIASES = {
    "mnist_reward_n1": "n=1",
    "mnist_reward_n16": "n=16",
    "mnist_reward_n128": "n=128",
    "mnist_topk_n1": "n=1,topk=0.25",
    "mnist_topk_n16": "n=16,topk=0.25",
    "mnist_topk_n128": "n=128,topk=0.25",
}

# Few pairs need centered inputs, less noise on confident logits, and smaller steps.
_FEW = {"output_noise": "softmax"}
_BY_PAIRS = {
    "n=1": {
        **_FEW,
        "samples": 1,
        "noise": "rademacher",
        "output_rate": 6.0,
        "learning_rate": 0.0004,
    },
    "n=16": {
        **_FEW,
        "samples": 16,
        "noise": "orthogonal",
        "output_rate": 2.0,
        "learning_rate": 0.002,
    },
    "n=128": {"samples": 128, "noise": "orthogonal", "learning_rate": 0.008},
}


def get_config(member: str = "n=16") -> ConfigDict:
    pairs, _, topk = member.partition(",topk=")
    activation = {"activation": "topk", "topk": float(topk)} if topk else {"activation": "relu"}
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {
                "name": "mnist",
                "validation": 0,
                **({} if pairs == "n=128" else {"normalize": "centered"}),
            },
            "model": {"name": "mlp", "hidden": (256,), **activation},
            "trainer": {
                "name": "grlu",
                "sigma": 0.1,
                "site": "active",
                "epochs": 10,
                "batch_size": 1,
                "optimizer": "sgd",
                **_BY_PAIRS[pairs],
            },
            "run": {"seeds": 3},
        }
    )
