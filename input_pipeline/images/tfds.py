"""Image classification sets prepared by TFDS as array_record, read without TensorFlow."""

import re
from collections.abc import Callable
from pathlib import Path

from grlu.errors import UserError
from input_pipeline.data import Data
from input_pipeline.images.loader import Images, image_loader
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

    def read(
        data_dir: str | None = None, train_split: str = "train", test_split: str = "test"
    ) -> Images:
        """Return the decoded splits, from the cache if they are there.

        Args:
            data_dir: folder of the prepared sets, by default that of `grlu data prepare`.
            train_split: TFDS split of the training examples.
            test_split: TFDS split of the test examples.
        """
        root = data_root(data_dir)
        folder = find(name, root)
        if folder is None:
            raise missing(name, root)
        digest = fingerprint(folder)
        remedy = prepare_command(name, root)

        def decoded(option: str, split: str) -> Arrays:
            if not isinstance(split, str):
                raise UserError(f"dataset.{option} must be a split such as 'train', not {split!r}.")
            key = "-".join([*folder.relative_to(root).parts, split])
            return cached(
                re.sub(r"[^\w.+-]", "_", key),
                f"{digest} {split}",
                lambda: _decode(folder, split, remedy),
            )

        train = decoded("train_split", train_split)
        test = decoded("test_split", test_split)
        parts = [{key: split[key] for key in ("image", "label")} for split in (train, test)]
        return parts[0], parts[1], int(train["num_classes"])

    return image_loader(name, read, description, validation=held_out, moments=moments)


def _decode(folder: Path, split: str, remedy: str) -> Arrays:
    # Imported here because cached sets need neither TFDS nor Pillow.
    from input_pipeline.images.decode import decode_split

    return decode_split(folder, split, remedy)
