"""Slow and fast on MNIST: the 50 latent means of a frozen VAE, and a GRLU head with N=16.

    grlu train mnist_vae_grlu

The autoencoder is `mnist_vae`, trained by backprop without labels for 50 epochs; the head is the
one of `mnist_autoencoder_grlu`. Test accuracy (`run.seeds=3`): 97.04 ± 0.21 %; the three seeds take
4 minutes on one core.
"""

from ml_collections import ConfigDict

from configs import mnist_autoencoder_grlu, mnist_vae


def get_config() -> ConfigDict:
    alone = mnist_vae.get_config().to_dict()
    config = mnist_autoencoder_grlu.get_config()
    config.stages[0] = {
        "name": "slow",
        "dataset": {"normalize": "unit", "binarize": "dynamic"},
        "model": alone["model"],
        "trainer": alone["trainer"] | {"epochs": 50},
    }
    return config
