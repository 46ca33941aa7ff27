"""The seven runs that the original project published: 784-256-10, 10 epochs, noise 0.1.

    grlu train published:5

These configs run the original project's settings unchanged: noise after the activation, no
1/sigma^2, a sum over the batch, all 60,000 training images and no validation split.

| run | N | batch | activation | published test accuracy, % |
|---|---|---|---|---|
| 1 | 16 | 1 | top-k 0.5 | 92.83 |
| 2 | 16 | 32 | top-k 0.25 | 89.69 |
| 3 | 16 | 16 | top-k 0.25 | 90.85 |
| 4 | 16 | 1 | top-k 0.25 | 92.52 |
| 5 | 128 | 1 | ReLU | 94.45 |
| 6 | 128 | 1 | top-k 0.5 | 94.13 |
| 7 | 128 | 1 | top-k 0.4 | 94.03 |
"""

from ml_collections import ConfigDict

MEMBERS = {
    "1": "N = 16, batch 1, top-k 0.5; 92.83 %",
    "2": "N = 16, batch 32, top-k 0.25; 89.69 %",
    "3": "N = 16, batch 16, top-k 0.25; 90.85 %",
    "4": "N = 16, batch 1, top-k 0.25; 92.52 %",
    "5": "N = 128, batch 1, ReLU; 94.45 %",
    "6": "N = 128, batch 1, top-k 0.5; 94.13 %",
    "7": "N = 128, batch 1, top-k 0.4; 94.03 %",
}
ALIASES = {
    "published_run1": "1",
    "published_run2": "2",
    "published_run3": "3",
    "published_run4": "4",
    "published_run5": "5",
    "published_run6": "6",
    "published_run7": "7",
}
# Run → pairs of passes, batch, fraction of winners (None for ReLU).
_RUNS = {
    "1": (16, 1, 0.5),
    "2": (16, 32, 0.25),
    "3": (16, 16, 0.25),
    "4": (16, 1, 0.25),
    "5": (128, 1, None),
    "6": (128, 1, 0.5),
    "7": (128, 1, 0.4),
}


def get_config(member: str = "5") -> ConfigDict:
    pairs, batch, winners = _RUNS[member]
    return ConfigDict(
        {
            "model": {"layer_sizes": [784, 256, 10]},
            "training": {
                "epochs": 10,
                "batch_size": batch,
                "n_perturbations": pairs,
                "noise_max": 0.1,
                "noise_min": 0.0,
                "lr_max": 0.1,
                "lr_min": 0.0,
                "k": winners,
                "seed": 42,
            },
        }
    )
