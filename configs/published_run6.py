"""Published run 6: N = 128, batch 1, top-k 0.5; 94.13 % test accuracy after 10 epochs.

    grlu train published_run6

The original project's configuration, run as it is: noise after the activation, no 1/sigma^2, a sum
over the batch, all 60,000 training images and no validation split.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {"layer_sizes": [784, 256, 10]},
            "training": {
                "epochs": 10,
                "batch_size": 1,
                "n_perturbations": 128,
                "noise_max": 0.1,
                "noise_min": 0.0,
                "lr_max": 0.1,
                "lr_min": 0.0,
                "k": 0.5,
                "seed": 42,
            },
        }
    )
