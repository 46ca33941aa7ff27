"""The model zoo: NNX modules, one architecture a file.

A model is built as `Model(example_shape, outputs, rngs=rngs, **options)`; the options are the
config's `model` section. A new model is one file and one line here.
"""

from collections.abc import Callable
from typing import Any

from models.autoencoder import Autoencoder, ConvAutoencoder
from models.gpt import GPT
from models.local_mlp import LocalMLP
from models.mlp import MLP
from models.skip_mlp import SkipMLP
from models.vae import VAE, ivae, vae_conv, vae_mlp

MODELS: dict[str, Callable[..., Any]] = {
    "autoencoder": Autoencoder,
    "conv_autoencoder": ConvAutoencoder,
    "gpt": GPT,
    "ivae": ivae,
    "local_mlp": LocalMLP,
    "mlp": MLP,
    "skip_mlp": SkipMLP,
    "vae_conv": vae_conv,
    "vae_mlp": vae_mlp,
}

__all__ = ["GPT", "MLP", "MODELS", "VAE", "Autoencoder", "ConvAutoencoder", "LocalMLP", "SkipMLP"]
