"""Model zoo: NNX modules, one architecture per file.

Build a model as `Model(example_shape, outputs, rngs=rngs, **options)`; the options are the keys of
the config's `model` section. A new model is one file and one line here.
"""

from collections.abc import Callable

from flax import nnx

from models.autoencoder import Autoencoder, ConvAutoencoder
from models.local_mlp import LocalMLP
from models.mlp import MLP
from models.skip_mlp import SkipMLP
from models.sparse_mlp import SparseMLP
from models.text.gpt import GPT
from models.vae import VAE, ivae, vae_conv, vae_mlp

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "autoencoder": Autoencoder,
    "conv_autoencoder": ConvAutoencoder,
    "gpt": GPT,
    "ivae": ivae,
    "local_mlp": LocalMLP,
    "mlp": MLP,
    "skip_mlp": SkipMLP,
    "sparse_mlp": SparseMLP,
    "vae_conv": vae_conv,
    "vae_mlp": vae_mlp,
}

__all__ = [
    "GPT",
    "MLP",
    "MODELS",
    "VAE",
    "Autoencoder",
    "ConvAutoencoder",
    "LocalMLP",
    "SkipMLP",
    "SparseMLP",
]
