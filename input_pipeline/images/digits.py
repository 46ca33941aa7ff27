"""Handwritten digits from scikit-learn: 1,797 images of 8x8 pixels from 0 to 16.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

import numpy as np

from input_pipeline.binarize import Binarization
from input_pipeline.data import Data, image_data


def digits(
    *,
    data_dir: str | None = None,
    validation: int | float = 180,
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
) -> Data:
    """1,437 + 360 handwritten digits, 8x8 grey, 10 classes; in scikit-learn, nothing to prepare.

    The test set is stratified and the same for every `split_seed`. `data_dir` is accepted for
    uniformity with other data sets, but ignored.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    indices = train_test_split(
        np.arange(len(source.target)), test_size=360, stratify=source.target, random_state=0
    )
    train, test = (
        {
            "image": source.images[np.sort(part), :, :, None].astype(np.uint8),
            "label": source.target[np.sort(part)].astype(np.int32),
        }
        for part in indices
    )
    return image_data(
        "digits",
        train,
        test,
        num_classes=10,
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
        maximum=16.0,
    )
