"""Few-shot MNIST: a GRLU head learns from 10 examples per class on an autoencoder's latents.

    grlu train mnist_fewshot
    grlu train mnist_fewshot stages.fast.dataset.per_class=5
    grlu train mnist_fewshot stages.slow.trainer.epochs=0   # the control: a random backbone
    grlu train mnist_fewshot stages.fast.features=null      # the control: the pixels

The autoencoder of `mnist_autoencoder_grlu` has seen all images, but no labels.
`stages.slow.backbone=RUN/stages/slow` reuses the autoencoder of an earlier run, to compare 1, 5, 10
and 50 examples on the same latents; `stages.fast.dataset.split_seed` selects other examples.
`python -m benchmarks.fewshot` runs the whole comparison.

Test accuracy with 10 examples per class is 75.7 ± 2.9 % (three seeds, each with its own examples),
against 64.8 ± 3.0 on the random backbone and 74.8 ± 2.7 on the pixels. docs/results.md has the
results for 1, 5 and 50 examples.
"""

from ml_collections import ConfigDict

from configs import mnist_autoencoder_grlu


def get_config() -> ConfigDict:
    config = mnist_autoencoder_grlu.get_config()
    fast = config.stages[1]
    fast["dataset"] = {"per_class": 10}
    fast["model"]["hidden"] = ()
    fast["trainer"]["epochs"] = 100
    return config
