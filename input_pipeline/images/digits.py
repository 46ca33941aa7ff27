"""Handwritten digits from scikit-learn: 1,797 images of 8x8 pixels from 0 to 16.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

import numpy as np

from input_pipeline.images.loader import Images


def read_digits(data_dir: str | None = None) -> Images:
    """Return a stratified split.

    Args:
        data_dir: ignored; scikit-learn has the images.
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
    return train, test, 10
