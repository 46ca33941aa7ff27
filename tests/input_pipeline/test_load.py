import inspect
import subprocess
import sys
from typing import get_type_hints

import pytest

from grlu.errors import UserError
from input_pipeline import DATASETS, load, loader

COMMON = {"data_dir": str | None}
OF_IMAGES = {
    "validation": int | float,
    "split_seed": int,
    "subset": int | None,
    "normalize": str,
    "flatten": bool,
}


@pytest.mark.parametrize("name", [*DATASETS, "tfds:cifar100"])
def test_every_loader_has_the_common_options_with_types_and_defaults(name):
    load_set = loader(name)
    hints = get_type_hints(load_set)
    text = "Text: " in load_set.__doc__ or "Task: " in load_set.__doc__
    assert (COMMON | ({} if text else OF_IMAGES)).items() <= hints.items()
    for parameter in inspect.signature(load_set).parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is not inspect.Parameter.empty
        assert parameter.name in hints


@pytest.mark.parametrize("name", [*DATASETS, "tfds:cifar100"])
def test_every_loader_has_a_description(name):
    assert loader(name).__doc__


def test_known_sets():
    assert set(DATASETS) >= {"digits", "mnist", "fashion_mnist", "kmnist", "cifar10"}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mnsit", "mnist"),
        ("fashion-mnist", "fashion_mnist"),
        ("tfds:", "digits"),
        (3, ""),
        ("", ""),
    ],
)
def test_an_unknown_name(name, nearest):
    with pytest.raises(UserError, match=rf"no data set {name!r}: the nearest is '{nearest}"):
        load(name)


@pytest.mark.parametrize("name", [*DATASETS, "tfds:cifar100"])
def test_an_unknown_option(name):
    with pytest.raises(UserError, match="no option 'valdiation': the nearest is 'validation'"):
        load(name, valdiation=3)


def test_wrong_options_are_reported():
    """Check that loaders pass options on; other tests check the options themselves."""
    for options in ({"validation": -1}, {"subset": 0}, {"normalize": "no"}, {"flatten": "no"}):
        with pytest.raises(UserError, match=next(iter(options))):
            load("digits", **options)


def test_importing_is_cheap():
    """Check that the command line's help does not wait for libraries that only runs need."""
    code = """
import sys, input_pipeline
heavy = {"tensorflow_datasets", "sklearn", "jax", "PIL", "rich", "array_record"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
