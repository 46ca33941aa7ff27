"""Loaders of image sets, with the options that all of them share."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from input_pipeline.data import Data, image_data

Images: TypeAlias = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], int]
"""Training and test images with `image` (N, H, W, C) and `label` (N,), and the number of labels."""


def image_loader(
    name: str,
    read: Callable[..., Images],
    description: str,
    *,
    validation: int | float = 0.1,
    **fixed: Any,
) -> Callable[..., Data]:
    """Return the loader of an image set: its options are those of `image_data` and of `read`.

    Args:
        name: name of the set.
        read: called with `data_dir`, a folder or None, and with options of its own.
        description: first line of the loader's docstring.
        validation: default size of the validation set, as a number or a fraction.
        fixed: arguments of `image_data` that are no options, such as `maximum`.
    """
    own = inspect.signature(read).parameters
    shared = {
        key: parameter
        for key, parameter in inspect.signature(image_data).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and key not in ("maximum", "moments")
    }
    shared["validation"] = shared["validation"].replace(default=validation)
    options = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()]
    signature = inspect.Signature([*options, *shared.values()], return_annotation=Data)

    def load(**given: Any) -> Data:
        bound = signature.bind(**given)
        bound.apply_defaults()
        values = bound.arguments
        train, test, classes = read(**{key: values.pop(key) for key in own})
        return image_data(name, dict(train), dict(test), classes, **values, **fixed)

    load.__name__ = load.__qualname__ = name
    documented = [(inspect.getdoc(f) or "").partition("Args:")[2] for f in (read, image_data)]
    load.__doc__ = "\n\n".join([description, *(f"Args:{text}" for text in documented if text)])
    hints = typing.get_type_hints(image_data) | typing.get_type_hints(read)
    load.__annotations__ = {key: hints[key] for key in signature.parameters} | {"return": Data}
    typing.cast(Any, load).__signature__ = signature
    return load
