"""IWAE: mnist_vae's model trained on the bound with 50 importance samples (Burda et al. 2016).

    grlu train mnist_iwae && grlu evaluate RUN --samples 5000 --images 10000

Stage one trains mnist_vae for 600 epochs; with one sample per image, each costs a thirtieth of an
epoch of stage two, which continues with 50 samples. The negative log-likelihood on the 10,000 test
images (seed 0, k = 5,000) is 85.93 nats, with 22 active units, after 26 minutes on one core. The
published model reaches 84.78 nats, with 25 active units, after 3,280 epochs of the bound.
"""

from ml_collections import ConfigDict

from configs import mnist_vae


def get_config() -> ConfigDict:
    config = mnist_vae.get_config().to_dict()
    model, elbo = config.pop("model"), config.pop("trainer")
    config["stages"] = [
        {"name": "elbo", "model": model, "trainer": elbo | {"epochs": 600}},
        {
            "name": "iwae",
            "start": "elbo",
            "trainer": {
                "objective": "iwae",
                "latent_samples": 50,
                "epochs": 25,
                "learning_rate": 1e-3,
            },
        },
    ]
    return ConfigDict(config)
