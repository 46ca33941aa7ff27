"""Control for `mnist_es_grlu`: the same head on the backbone's random initial weights.

    grlu train mnist_random_grlu

Test accuracy 95.40 ± 0.28 % (`run.seeds=3`). The control for the autoencoder is
`grlu train mnist_autoencoder_grlu stages.slow.trainer.epochs=0`.
"""

from ml_collections import ConfigDict

from configs import mnist_es_grlu


def get_config() -> ConfigDict:
    config = mnist_es_grlu.get_config()
    config.stages[0]["trainer"]["epochs"] = 0
    return config
