"""Slow and fast on MNIST without backprop anywhere: a frozen evolved layer and a GRLU head, N=16.

    grlu train mnist_es_grlu

The backbone is the hidden layer of `mnist_es`, which evolves on a classifier's reward. The head is
the one of `mnist_autoencoder_grlu` and learns one example at a time. `stages.slow.backbone=RUN`
takes the backbone from a finished run of `mnist_es`.

Test accuracy 97.11 ± 0.10 % (`run.seeds=3`), 8.5 minutes per seed on one core; the control,
`mnist_random_grlu`, reaches 95.40 ± 0.28.
"""

from ml_collections import ConfigDict

from configs import mnist_autoencoder_grlu, mnist_es


def get_config() -> ConfigDict:
    alone = mnist_es.get_config()
    config = mnist_autoencoder_grlu.get_config()
    config.stages[0] = {
        "name": "slow",
        "dataset": {"normalize": alone.dataset.normalize},
        "model": alone.model.to_dict(),
        "trainer": alone.trainer.to_dict(),
    }
    return config
