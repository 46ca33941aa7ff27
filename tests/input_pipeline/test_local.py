"""Refusal of remote paths, before anything is written to a local folder of that name."""

import pathlib

import pytest

import input_pipeline
from grlu.errors import UserError
from input_pipeline.storage.local import local


@pytest.mark.parametrize("place", ["gs://bucket/x", pathlib.Path("gs://bucket/x"), "hf+s3://b/x"])
def test_a_scheme_is_refused(place):
    with pytest.raises(UserError, match=r"what .*://.*/x is not a local path"):
        local(place, "what")


@pytest.mark.parametrize("place", ["x", "/x/gs://y", "./gs", "~", "a:b", "c:/x", "x/y://z"])
def test_a_local_path_is_expanded(place):
    assert local(place, "what") == pathlib.Path(place).expanduser()


def use(*arguments, **options):
    return lambda: input_pipeline.load(*arguments, **options)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (use("text:gs://bucket/x.txt"), "the text gs://bucket/x.txt is not a local path"),
        (use("folder:gs://bucket/x"), "the folder gs://bucket/x is not a local path"),
        (use("preferences:gs://bucket/x"), "the text gs://bucket/x is not a local path"),
        (use("mnist", data_dir="gs://bucket/x"), "dataset.data_dir gs://bucket/x is not a local"),
        (
            lambda: input_pipeline.prepare("shakespeare", data_dir="gs://bucket/x"),
            "dataset.data_dir gs://bucket/x is not a local path",
        ),
        (
            lambda: input_pipeline.prepare("shakespeare", source="gs://bucket/x"),
            "the source gs://bucket/x is not a local path",
        ),
    ],
)
def test_remote_data_are_refused(action, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        action()
    assert not list(tmp_path.iterdir())


def test_remote_folders_of_the_environment_are_refused_where_they_are_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/x")
    with pytest.raises(UserError, match="TFDS_DATA_DIR gs://bucket/x is not a local path"):
        input_pipeline.prepare("mnist")
    assert input_pipeline.load("sonnets").num_classes
    monkeypatch.setenv("GRLU_CACHE", "gs://bucket/x")
    with pytest.raises(UserError, match="GRLU_CACHE gs://bucket/x is not a local path"):
        input_pipeline.storage.cache.cached("key", "", dict)
    assert not list(tmp_path.iterdir())
