"""Options to select classes and a number of examples per class, for all image sets."""

import numpy as np
import pytest

import input_pipeline
from grlu.errors import UserError


def test_classes_are_kept_in_every_split_and_labels_stay():
    whole = input_pipeline.load("digits")
    some = input_pipeline.load("digits", classes=(7, 2))
    assert some.num_classes == 10
    for split in ("train", "validation", "test"):
        labels = getattr(whole, split)["label"]
        kept = np.isin(labels, (2, 7))
        np.testing.assert_array_equal(getattr(some, split)["label"], labels[kept])
        np.testing.assert_array_equal(
            getattr(some, split)["image"], getattr(whole, split)["image"][kept]
        )
    assert some.preprocess == whole.preprocess


def test_renumbered_labels_follow_the_order_of_the_classes():
    some = input_pipeline.load("digits", classes=(7, 2))
    renumbered = input_pipeline.load("digits", classes=(7, 2), renumber=True)
    assert renumbered.num_classes == 2
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(
            getattr(renumbered, split)["label"], getattr(some, split)["label"] == 2
        )


def test_few_examples_are_nested_and_depend_on_the_seed():
    few, more, other = (
        {image.tobytes() for image in data.train["image"]}
        for data in (
            input_pipeline.load("digits", per_class=3),
            input_pipeline.load("digits", per_class=5),
            input_pipeline.load("digits", per_class=3, split_seed=1),
        )
    )
    assert (len(few), len(more)) == (30, 50)
    assert few < more
    assert few != other
    labels = input_pipeline.load("digits", per_class=3, classes=(1, 4)).train["label"]
    assert np.bincount(labels).tolist() == [0, 3, 0, 0, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": (3, 10)}, "labels of the data set, from 0 to 9"),
        ({"classes": (3, 3)}, "different labels"),
        ({"classes": ()}, "different labels"),
        ({"per_class": 0}, "per_class must be at least 1"),
        ({"per_class": 10_000}, "more than the .* training examples of class 0"),
    ],
)
def test_invalid_classes_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        input_pipeline.load("digits", **options)
