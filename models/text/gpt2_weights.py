"""Loading of GPT-2's published weights from a safetensors file."""

import os
import pathlib
import re

import jax.numpy as jnp
import numpy as np
from flax import nnx

import grlu
from models.text.gpt import GPT

# Our parameter names -> theirs, outside layers and inside a layer.
_GLOBAL = {
    "tokens.embedding": "wte.weight",
    "positions": "wpe.weight",
    "norm.scale": "ln_f.weight",
    "norm.bias": "ln_f.bias",
}
_LAYER = {
    "norm_1.scale": "ln_1.weight",
    "norm_1.bias": "ln_1.bias",
    "attention.project.kernel": "attn.c_attn.weight",
    "attention.project.bias": "attn.c_attn.bias",
    "attention.out.kernel": "attn.c_proj.weight",
    "attention.out.bias": "attn.c_proj.bias",
    "norm_2.scale": "ln_2.weight",
    "norm_2.bias": "ln_2.bias",
    "up.kernel": "mlp.c_fc.weight",
    "up.bias": "mlp.c_fc.bias",
    "down.kernel": "mlp.c_proj.weight",
    "down.bias": "mlp.c_proj.bias",
}
# GPT-2's heads have 64 features in every published size.
_HEAD_WIDTH = 64


def gpt2_from_file(
    path: str | os.PathLike[str],
    *,
    heads: int | None = None,
    block: int | None = None,
    dropout: float = 0.0,
) -> GPT:
    """Return a GPT with the size and weights of a GPT-2 saved by the transformers library.

    Args:
        path: path of `model.safetensors`.
        heads: number of heads, which the file does not contain; by default GPT-2's width / 64.
        block: number of positions to keep, from the first; by default all.
        dropout: dropout rate, as in `GPT`.

    Raises:
        UserError: if the file or the safetensors package is missing, or the file is not a GPT-2.
    """
    theirs = _read(pathlib.Path(path).expanduser())
    try:
        vocabulary, width = theirs["wte.weight"].shape
        theirs["wpe.weight"] = theirs["wpe.weight"][:block]
        block = len(theirs["wpe.weight"])
    except KeyError as error:
        raise grlu.UserError(f"{path} holds no GPT-2: it has no {error}") from error
    except ValueError as error:
        shape = theirs["wte.weight"].shape
        raise grlu.UserError(
            f"{path} holds no GPT-2: wte.weight must be a matrix, not {shape}"
        ) from error
    found = (re.match(r"h\.(\d+)\.", name) for name in theirs)
    layers = 1 + max((int(number[1]) for number in found if number), default=-1)
    if not layers:
        raise grlu.UserError(f"{path} holds no GPT-2: it has no layers, h.0.ln_1.weight and so on")
    heads = max(1, width // _HEAD_WIDTH) if heads is None else heads
    model = GPT(
        (block,),
        vocabulary,
        layers=layers,
        heads=heads,
        width=width,
        dropout=dropout,
        rngs=nnx.Rngs(0),
    )
    names = dict(_GLOBAL)
    for i in range(layers):
        names |= {f"layers.{i}.{ours}": f"h.{i}.{other}" for ours, other in _LAYER.items()}
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    for key, variable in params:
        name = names[".".join(map(str, key))]
        if name not in theirs or theirs[name].shape != variable[...].shape:
            given = theirs[name].shape if name in theirs else "missing"
            raise grlu.UserError(
                f"{path} holds no GPT-2: {name} must have shape {variable[...].shape}, not {given}"
            )
        variable[...] = jnp.asarray(theirs[name], variable[...].dtype)
    return model


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise grlu.UserError(
            "reading GPT-2's weights needs safetensors: run `pip install grlu[text]`"
        ) from error
    if not path.is_file():
        raise grlu.UserError(f"there is no file {path} with GPT-2's weights")
    try:
        arrays: dict[str, np.ndarray] = load_file(path)
    except SafetensorError as error:
        raise grlu.UserError(f"{path} is not a complete safetensors file: {error}") from error
    # Models with a head are saved with the prefix "transformer.".
    return {re.sub(r"^transformer\.", "", name): array for name, array in arrays.items()}
