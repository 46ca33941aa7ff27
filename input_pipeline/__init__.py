"""Data sets as arrays, ready for a model.

>>> import input_pipeline
>>> data = input_pipeline.load("digits", validation=100)
>>> data.train["image"].shape, data.test["label"].shape, data.num_classes
((1337, 8, 8, 1), (360,), 10)
>>> data.preprocess(data.train)["image"].shape
(1337, 64)

A data set is a loader: a function of keyword options that returns `Data`. To add one, add a line to
`DATASETS`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from grlu.errors import UserError
from input_pipeline.data import Data
from input_pipeline.images.digits import read_digits
from input_pipeline.images.folder import image_folder
from input_pipeline.images.loader import image_loader
from input_pipeline.images.tfds import image_set
from input_pipeline.prepare import Prepared, prepare
from input_pipeline.storage.names import nearest
from input_pipeline.text.files import read_shakespeare, text_file, text_set
from input_pipeline.text.preferences import preferences
from input_pipeline.text.sonnets import SONNETS
from input_pipeline.text.tasks import TASKS

__all__ = ["DATASETS", "Data", "Prepared", "load", "loader", "prepare"]

DATASETS: dict[str, Callable[..., Data]] = {
    "digits": image_loader(
        "digits",
        read_digits,
        "1,437 + 360 handwritten digits of scikit-learn, 8x8 grey, 10 classes; nothing to prepare.",
        validation=180,
        maximum=16.0,
    ),
    "mnist": image_set(
        "mnist",
        "60,000 + 10,000 handwritten digits, 28x28 grey, 10 classes.",
        held_out=5000,
        moments=((0.1307,), (0.3081,)),
    ),
    "fashion_mnist": image_set(
        "fashion_mnist",
        "60,000 + 10,000 pieces of clothing, 28x28 grey, 10 classes.",
        held_out=5000,
        moments=((0.2860,), (0.3530,)),
    ),
    "kmnist": image_set(
        "kmnist",
        "60,000 + 10,000 cursive Japanese characters, 28x28 grey, 10 classes.",
        held_out=5000,
        moments=((0.1918,), (0.3483,)),
    ),
    "cifar10": image_set(
        "cifar10",
        "50,000 + 10,000 photographs, 32x32 colour, 10 classes.",
        held_out=5000,
        moments=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "sonnets": text_set(
        "sonnets",
        "Text: eight of Shakespeare's sonnets, 5,000 characters; nothing to prepare.",
        lambda root: SONNETS,
        length=32,
    ),
    "shakespeare": text_set(
        "shakespeare",
        "Text: tiny-shakespeare, 1,115,394 characters, 65 different ones.",
        read_shakespeare,
    ),
    **TASKS,
}


def loader(name: str) -> Callable[..., Data]:
    """Return the loader called `name`, from `DATASETS` or of the form `KIND:PLACE`.

    Raises:
        UserError: if the name is unknown.
    """
    if isinstance(name, str) and name in DATASETS:
        return DATASETS[name]
    if isinstance(name, str) and name.startswith("tfds:") and name != "tfds:":
        tfds_name = name.removeprefix("tfds:")
        return image_set(name, f"TFDS's image set {tfds_name}.")
    if isinstance(name, str) and name.startswith("folder:") and name != "folder:":
        return image_folder(name.removeprefix("folder:"))
    if isinstance(name, str) and name.startswith("text:") and name != "text:":
        return text_file(name.removeprefix("text:"))
    if isinstance(name, str) and name.startswith("preferences:") and name != "preferences:":
        return preferences(name.removeprefix("preferences:"), loader)
    raise UserError(
        f"there is no data set {name!r}: the nearest is {nearest(str(name), DATASETS)!r} (known:"
        f" {', '.join(DATASETS)}, tfds:NAME for images of TFDS, folder:PATH for your own images,"
        " text:PATH for a text, and preferences:PATH for preference pairs)."
    )


def load(name: str, **options: Any) -> Data:
    """Load the data set `name` with its loader's options.

    Raises:
        UserError: if the name or an option is unknown, an option has the wrong type or size, or
            data is missing or damaged.
    """
    load_set = loader(name)
    known = inspect.signature(load_set).parameters
    for option in options:
        if option not in known:
            raise UserError(
                f"the data set {name!r} has no option {option!r}: the nearest is"
                f" {nearest(option, known)!r} (known: {', '.join(known)})."
            )
    return load_set(**options)
