"""Amortized baseline of mnist_ivae_kl: same model and epochs, ordinary ELBO.

    grlu train mnist_vae_z15 && grlu evaluate RUN --samples 5000

784-512-256-15, tanh, and back, ReLU; MNIST dynamically binarized. Negative log-likelihood
(seed 0, k = 5,000, 1,000 test images): 91.13 nats, 90.62 with `--refined`; all 15 units active; 2.5
minutes on one core. 20 steps of inference at test time close 91 % of the amortization gap.
"""

from ml_collections import ConfigDict

from configs import mnist_vae


def get_config() -> ConfigDict:
    config = mnist_vae.get_config()
    config.model = {
        "name": "vae_mlp",
        "latent": 15,
        "encoder_hidden": (512, 256),
        "decoder_hidden": (256, 512),
        "encoder_activation": "tanh",
        "decoder_activation": "relu",
    }
    config.trainer = {
        "name": "backprop",
        "objective": "elbo",
        "kl_warmup": 0.05,
        "epochs": 60,
        "batch_size": 128,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "learning_rate_end": 1e-5,
    }
    return config
