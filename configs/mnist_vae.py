"""A variational autoencoder on MNIST, dynamically binarized, as in Burda et al. (2016).

    grlu train mnist_vae && grlu evaluate RUN --best --samples 5000 --images 10000

The network is 784-200-200-50 and back, with tanh units and one stochastic layer. The negative
log-likelihood on the 10,000 test images (seed 0, k = 5,000) is 86.46 nats, with an ELBO of -90.07
and 23 active units, after 20 minutes on one core. The published model reaches 86.76 nats, with 19
active units, after 3,280 epochs.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {
                "name": "mnist",
                "validation": 1000,
                "normalize": "unit",
                "binarize": "dynamic",
            },
            "model": {
                "name": "vae_mlp",
                "latent": 50,
                "encoder_hidden": (200, 200),
                "decoder_hidden": (200, 200),
                "encoder_activation": "tanh",
                "decoder_activation": "tanh",
            },
            "trainer": {
                "name": "backprop",
                "objective": "elbo",
                "kl_warmup": 0.02,
                "epochs": 1000,
                "batch_size": 128,
                "optimizer": "adam",
                "learning_rate": 2e-3,
                "learning_rate_end": 1e-5,
                "average": 0.999,
            },
            "run": {"rows_per_epoch": 1},
        }
    )
