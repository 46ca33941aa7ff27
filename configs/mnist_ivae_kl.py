"""Iterative inference on MNIST: 20 steps refine each posterior, and the encoder learns the result.

    grlu train mnist_ivae_kl && grlu evaluate RUN --samples 5000

The model and the number of epochs are those of mnist_vae_z15; training takes 17 minutes on one
core. The negative log-likelihood (seed 0, k = 5,000, 1,000 test images) is 89.65 nats.
mnist_vae_z15 reaches 91.13, or 90.62 if its posteriors are refined at test time. The 20 steps close
67 % of the amortization gap.
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
