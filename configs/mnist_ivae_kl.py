"""Iterative inference on MNIST: 20 steps on each posterior, which the encoder then chases.

    grlu train mnist_ivae_kl && grlu evaluate RUN --samples 5000 --images 10000

The model and the epochs of mnist_vae_z15. Goal: at least 0.5 nat below its negative log-likelihood
(k = 5,000). Not yet trained to its end.
"""

from ml_collections import ConfigDict

from configs import mnist_vae_z15


def get_config() -> ConfigDict:
    config = mnist_vae_z15.get_config()
    config.model.name = "ivae"
    config.trainer.update(
        {
            "name": "svi",
            "mode": "kl",
            "svi_steps": 20,
            "svi_learning_rate": 0.2,
            "svi_natural": True,
            "svi_schedule": "linear",
        }
    )
    return config
