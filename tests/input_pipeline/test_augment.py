"""Augmented images: shifted, mirrored or cut, black where nothing was, and normalised as before."""

import jax
import numpy as np
import pytest

import input_pipeline
from grlu.errors import UserError


@pytest.fixture(params=["standard", "centered", "unit"])
def augmented(request):
    """Return pixels before and after, (64, 8, 8) and at least 0, of options."""

    def make(**options):
        data = input_pipeline.load("digits", normalize=request.param, **options)
        batch = data.preprocess({key: array[:64] for key, array in data.train.items()})
        black = data.preprocess({"image": np.zeros((1, 8, 8, 1))})["image"]
        after = data.augment(batch, jax.random.key(0))
        assert after["image"].dtype == batch["image"].dtype
        np.testing.assert_array_equal(after["label"], batch["label"])
        return [np.asarray(b["image"] - black).reshape(64, 8, 8) for b in (batch, after)]

    return make


def test_a_crop_shifts_each_image_by_itself(augmented):
    before, after = augmented(crop=2)
    shifts = set()
    for image, found in zip(before, after, strict=True):
        padded = np.pad(image, 2)
        places = [(i, j) for i in range(5) for j in range(5)]
        equal = [
            (i, j) for i, j in places if np.allclose(padded[i : i + 8, j : j + 8], found, atol=1e-4)
        ]
        assert equal
        shifts.add(equal[0])
    assert len(shifts) > 10


def test_a_flip_mirrors_half_of_the_images(augmented):
    before, after = augmented(flip=True)
    mirrored = [np.allclose(a, b[:, ::-1], atol=1e-4) for a, b in zip(after, before, strict=True)]
    same = [np.allclose(a, b, atol=1e-4) for a, b in zip(after, before, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48


def test_cutout_blackens_one_square(augmented):
    before, after = augmented(cutout=4)
    for a, b in zip(after, before, strict=True):
        changed = np.argwhere(np.abs(a - b) > 1e-4)
        if len(changed):
            assert (np.ptp(changed, axis=0) < 4).all()
            np.testing.assert_allclose(a[tuple(changed.T)], 0, atol=1e-4)
    assert (np.abs(after - before) > 1e-4).any()


def test_only_training_images_are_augmented():
    assert input_pipeline.load("digits").augment is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 9}, r"dataset\.crop must be a number of pixels from 0 to 8, not 9"),
        ({"cutout": 1.5}, r"dataset\.cutout must be a number of pixels"),
        ({"flip": 1}, r"dataset\.flip must be true or false"),
        ({"crop": 1, "normalize": "unit", "binarize": "static"}, "set dataset.binarize=null"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        input_pipeline.load("digits", **options)
