import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grlu.errors import UserError
from input_pipeline.preprocess import channel_moments, preprocess_for

IMAGES = np.random.default_rng(0).integers(0, 256, (2500, 4, 3, 3), np.uint8)


def test_moments_match_the_full_array():
    mean, std = channel_moments(IMAGES, 255.0)
    scaled = IMAGES.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_standard_by_computed_moments_has_mean_zero_and_deviation_one():
    preprocess = preprocess_for(IMAGES, normalize="standard", flatten=False)
    image = np.asarray(preprocess({"image": IMAGES})["image"], np.float64)
    np.testing.assert_allclose(image.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(image.std((0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("flatten", [True, False])
def test_centered_has_mean_zero_at_every_pixel(flatten):
    preprocess = preprocess_for(IMAGES, normalize="centered", flatten=flatten)
    image = np.asarray(preprocess({"image": IMAGES})["image"], np.float64)
    np.testing.assert_allclose(image.mean(0), 0, atol=1e-5)
    scaled = IMAGES.astype(np.float64) / 255
    expected = (scaled - scaled.mean(0)) / scaled.std((0, 1, 2))
    np.testing.assert_allclose(image.reshape(expected.shape), expected, atol=1e-5)


def test_standard_by_published_moments():
    pixels = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    preprocess = preprocess_for(
        pixels, normalize="standard", flatten=True, moments=((0.1307,), (0.3081,))
    )
    expected = [[-0.1307 / 0.3081], [(1 - 0.1307) / 0.3081]]
    np.testing.assert_allclose(preprocess({"image": pixels})["image"], expected, rtol=1e-6)


@pytest.mark.parametrize(("normalize", "top"), [("unit", 1.0), ("none", 16.0)])
def test_unit_and_none(normalize, top):
    pixels = np.array([0, 16], np.uint8).reshape(2, 1, 1, 1)
    preprocess = preprocess_for(pixels, normalize=normalize, flatten=True, maximum=16.0)
    np.testing.assert_array_equal(preprocess({"image": pixels})["image"], [[0.0], [top]])


def test_flatten_keeps_the_order_of_pixels_and_the_rest_of_the_batch():
    batch = {"image": jnp.asarray(IMAGES[:5]), "label": jnp.arange(5)}
    flat = preprocess_for(IMAGES, normalize="none", flatten=True)(batch)
    assert flat["image"].shape == (5, 36)
    assert flat["image"].dtype == jnp.float32
    np.testing.assert_array_equal(flat["image"], IMAGES[:5].reshape(5, 36))
    assert flat["label"] is batch["label"]


def test_the_same_under_jit_without_promotion_of_ranks():
    preprocess = preprocess_for(IMAGES, normalize="standard", flatten=True)
    batch = {"image": IMAGES[:5]}
    with jax.numpy_rank_promotion("raise"):
        np.testing.assert_allclose(
            jax.jit(preprocess)(batch)["image"], preprocess(batch)["image"], atol=1e-6
        )


def test_equal_options_make_equal_functions():
    """Check that `jit` compiles a single time for two equal functions."""
    first, second = (preprocess_for(IMAGES, normalize="unit", flatten=True) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_a_channel_that_never_varies_becomes_zero():
    images = np.full((3, 2, 2, 1), 9, np.uint8)
    preprocess = preprocess_for(images, normalize="standard", flatten=True)
    np.testing.assert_allclose(preprocess({"image": images})["image"], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "standart"}, "one of standard, centered, unit, none, not 'standart'"),
        ({"normalize": None}, "not None"),
        ({"normalize": ["unit"]}, r"not \['unit'\]"),
        ({"flatten": "yes"}, r"dataset\.flatten must be true or false, not 'yes'"),
        ({"flatten": 1}, "not 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        preprocess_for(IMAGES, **{"normalize": "unit", "flatten": True} | options)
