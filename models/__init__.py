"""The model zoo: NNX modules, one architecture a file.

A model is built as `Model(example_shape, outputs, rngs=rngs, **options)`; the options are the
config's `model` section. A new model is one file and one line here.
"""

from models.autoencoder import Autoencoder, ConvAutoencoder
from models.gpt import GPT
from models.local_mlp import LocalMLP
from models.mlp import MLP
from models.skip_mlp import SkipMLP

MODELS = {
    "autoencoder": Autoencoder,
    "conv_autoencoder": ConvAutoencoder,
    "gpt": GPT,
    "local_mlp": LocalMLP,
    "mlp": MLP,
    "skip_mlp": SkipMLP,
}

__all__ = ["GPT", "MLP", "MODELS", "Autoencoder", "ConvAutoencoder", "LocalMLP", "SkipMLP"]
