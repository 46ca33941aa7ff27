"""The model of mnist_vae by the importance-weighted bound of 50 samples (Burda et al. 2016).

    grlu train mnist_iwae && grlu evaluate RUN --best --samples 5000 --images 10000

Goal: a negative log-likelihood of at most 87.0 nats (k = 5,000) in at most 40 minutes on 2 cores;
published, after 3,280 epochs: 84.78, 25 active units. Not yet trained to its end.
"""

from ml_collections import ConfigDict

from configs import mnist_vae


def get_config() -> ConfigDict:
    config = mnist_vae.get_config()
    config.trainer = {
        "name": "backprop",
        "objective": "iwae",
        "latent_samples": 50,
        "epochs": 75,
        "batch_size": 128,
        "optimizer": "adam",
        "learning_rate": 2e-3,
        "learning_rate_end": 1e-5,
        "average": 0.999,
    }
    return config
