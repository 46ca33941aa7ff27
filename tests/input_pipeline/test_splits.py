import numpy as np
import pytest

from grlu.errors import UserError
from input_pipeline.splits import carve

EXAMPLES = {
    "image": np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1),
    "label": np.arange(100, dtype=np.int32),
}


def split(validation=20, split_seed=0, subset=None):
    return carve(EXAMPLES, validation=validation, split_seed=split_seed, subset=subset)


def test_splits_are_disjoint_and_complete():
    train, validation = split()
    assert len(train["label"]) == 80
    assert len(validation["label"]) == 20
    assert sorted([*train["label"], *validation["label"]]) == list(range(100))
    for part in (train, validation):
        np.testing.assert_array_equal(part["image"].ravel(), part["label"])
        assert part["image"].dtype == np.uint8


def test_seed_determines_the_split():
    np.testing.assert_array_equal(split()[1]["label"], split()[1]["label"])
    assert set(split()[1]["label"]) != set(split(split_seed=1)[1]["label"])


def test_held_out_examples_are_spread_over_the_data():
    held_out = split()[1]["label"]
    assert held_out.min() < 40
    assert held_out.max() > 60


def test_no_validation_returns_the_arrays_unchanged():
    train, validation = split(validation=0)
    assert validation is None
    assert train["image"] is EXAMPLES["image"]


@pytest.mark.parametrize(("validation", "size"), [(0.25, 25), (0.0, 0), (30.0, 30), (99, 99)])
def test_fractions_and_counts(validation, size):
    train, held_out = split(validation=validation)
    assert len(train["label"]) == 100 - size
    assert (0 if held_out is None else len(held_out["label"])) == size


def test_subsets_are_nested_and_exclude_the_validation_set():
    small, validation = split(subset=10)
    large, same = split(subset=50)
    assert len(small["label"]) == 10
    assert set(small["label"]) < set(large["label"])
    assert not set(large["label"]) & set(validation["label"])
    np.testing.assert_array_equal(validation["label"], same["label"])


def test_a_subset_without_validation():
    train, validation = split(validation=0, subset=10)
    assert validation is None
    assert len(set(train["label"])) == 10


def test_subset_of_the_full_remainder_is_the_remainder():
    np.testing.assert_array_equal(split(subset=80)[0]["label"], split()[0]["label"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": -1}, r"dataset\.validation must be .* not -1"),
        ({"validation": -0.5}, "not -0.5"),
        ({"validation": 2.5}, "not 2.5"),
        ({"validation": float("nan")}, "not nan"),
        ({"validation": float("inf")}, "not inf"),
        ({"validation": "5000"}, "not '5000'"),
        ({"validation": True}, "not True"),
        ({"validation": None}, "not None"),
        ({"validation": 100}, "leaves nothing to train on: it must be smaller than the 100"),
        ({"validation": 0.999}, "leaves nothing to train on"),
        ({"validation": 0.001}, "selects none"),
        ({"subset": 0}, "at least 1"),
        ({"subset": -3}, "not -3"),
        ({"subset": 81}, "more than the 80"),
        ({"subset": 1.0}, r"not 1\.0"),
        ({"subset": True}, "not True"),
        ({"split_seed": -1}, r"dataset\.split_seed must be .* not -1"),
        ({"split_seed": 0.5}, r"not 0\.5"),
        ({"split_seed": None}, "not None"),
    ],
)
def test_wrong_sizes_and_types(options, message):
    with pytest.raises(UserError, match=message):
        split(**options)
