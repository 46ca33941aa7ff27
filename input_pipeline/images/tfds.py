"""Image classification sets prepared by TFDS as array_record, read without TensorFlow."""

import re
from collections.abc import Callable
from pathlib import Path

from grlu.errors import UserError
from input_pipeline.binarize import Binarization
from input_pipeline.data import Data, image_data
from input_pipeline.preprocess import Moments
from input_pipeline.storage.cache import Arrays, cached
from input_pipeline.storage.prepared import data_root, find, fingerprint, missing, prepare_command


def image_set(
    name: str,
    description: str,
    *,
    held_out: int | float = 0.1,
    moments: Moments | None = None,
) -> Callable[..., Data]:
    """Return the loader of one TFDS set.

    Args:
        name: name of the set, with or without "tfds:" in front.
        description: docstring of the loader.
        held_out: default size of the validation set.
        moments: published mean and standard deviation per channel, for pixels in [0, 1].
    """

    def load(
        *,
        data_dir: str | None = None,
        validation: int | float = held_out,
        split_seed: int = 0,
        subset: int | None = None,
        normalize: str = "standard",
        flatten: bool = True,
        classes: tuple[int, ...] | None = None,
        renumber: bool = False,
        per_class: int | None = None,
        binarize: Binarization | None = None,
        crop: int = 0,
        flip: bool = False,
        cutout: int = 0,
        train_split: str = "train",
        test_split: str = "test",
    ) -> Data:
        root = data_root(data_dir)
        folder = find(name, root)
        if folder is None:
            raise missing(name, root)
        digest = fingerprint(folder)
        remedy = prepare_command(name, root)

        def read(option: str, split: str) -> Arrays:
            if not isinstance(split, str):
                raise UserError(f"dataset.{option} must be a split such as 'train', not {split!r}.")
            key = "-".join([*folder.relative_to(root).parts, split])
            return cached(
                re.sub(r"[^\w.+-]", "_", key),
                f"{digest} {split}",
                lambda: _decode(folder, split, remedy),
            )

        train, test = read("train_split", train_split), read("test_split", test_split)
        return image_data(
            name,
            {key: train[key] for key in ("image", "label")},
            {key: test[key] for key in ("image", "label")},
            int(train["num_classes"]),
            validation=validation,
            split_seed=split_seed,
            subset=subset,
            normalize=normalize,
            flatten=flatten,
            classes=classes,
            renumber=renumber,
            per_class=per_class,
            binarize=binarize,
            crop=crop,
            flip=flip,
            cutout=cutout,
            moments=moments,
        )

    load.__name__ = load.__qualname__ = name
    load.__doc__ = description
    return load


def _decode(folder: Path, split: str, remedy: str) -> Arrays:
    # Imported here because cached sets need neither TFDS nor Pillow.
    from input_pipeline.images.decode import decode_split

    return decode_split(folder, split, remedy)
