"""Folders of images: mixed sizes, hashed splits, unreadable files, and training from disk."""

import errno
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import input_pipeline
import trainers
from grlu.errors import UserError
from input_pipeline.storage.on_disk import OnDisk


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRLU_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for i in range(120):
        height, width = generator.integers(9, 30, 2)
        grey = i % 3 == 0
        shape = (height, width) if grey else (height, width, 3)
        base = np.full(shape, 40 + 150 * (i % 2), np.uint8)
        place = tmp_path / "images" / ("dark" if i % 2 == 0 else "light") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(base).save(place)
    return tmp_path / "images"


def load(folder, **options):
    return input_pipeline.load(f"folder:{folder}", size=16, **options)


def test_images_are_resized_and_subfolders_are_classes(folder):
    data = load(folder)
    assert data.example_shape == (16, 16, 3)
    assert data.num_classes == 2
    assert data.streamed
    sizes = [len(split["label"]) for split in (data.train, data.validation, data.test)]
    assert sum(sizes) == 120
    assert sizes[0] > 80
    for split in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(split["image"][:][:, 3, 3, 0], 40 + 150 * split["label"])
    grey = load(folder, colour="grey", flatten=True)
    assert grey.preprocess(grey.test)["image"].shape[1:] == grey.example_shape == (256,)


def test_new_image_leaves_the_splits_of_others(folder):
    before = load(folder)
    Image.new("RGB", (20, 20)).save(folder / "dark" / "new.png")
    after = load(folder)
    assert (
        len(after.train["label"]) + len(after.validation["label"]) + len(after.test["label"]) == 121
    )
    assert abs(len(after.test["label"]) - len(before.test["label"])) <= 1


def test_concurrent_processes_share_one_decoded_copy(folder, tmp_path, monkeypatch):
    """Let three processes decode the images before the first renames its folder."""
    barrier, replace = threading.Barrier(3), os.replace

    def together(source, target):
        barrier.wait(timeout=60)
        replace(source, target)

    monkeypatch.setattr(os, "replace", together)
    with ThreadPoolExecutor(3) as pool:
        found = [future.result() for future in [pool.submit(load, folder) for _ in range(3)]]
    for data in found:
        np.testing.assert_array_equal(data.test["image"][:], found[0].test["image"][:])
    assert len(list((tmp_path / "cache" / "folders").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_named(folder, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot be stored in .*folders \(No space left"):
        load(folder)


def test_unreadable_images_are_named_and_counted(folder, caplog):
    (folder / "dark" / "0.png").write_bytes(b"no image")
    (folder / "light" / "1.png").write_bytes((folder / "light" / "1.png").read_bytes()[:50])
    with caplog.at_level(logging.WARNING, "grlu"):
        data = load(folder)
    assert "2 of 120 images" in caplog.text
    assert "dark/0.png" in caplog.text
    total = [len(s["label"]) for s in (data.train, data.validation, data.test)]
    assert sum(total) == 118


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 0}, "dataset.size must be"),
        ({"colour": "blue"}, "dataset.colour must be rgb or grey"),
        ({"validation": 0.6, "test": 0.5}, "must be fractions of the images"),
    ],
)
def test_wrong_options_are_refused(folder, options, sentence):
    with pytest.raises(UserError, match=sentence):
        input_pipeline.load(f"folder:{folder}", **options)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        load(tmp_path / "missing")
    with pytest.raises(UserError, match="hold no images"):
        load(tmp_path)


def test_truncated_file_is_reported(tmp_path):
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(24))
    rows = OnDisk(path, (2, 3))
    path.write_bytes(bytes(20))
    with pytest.raises(UserError, match=r"image\.raw is damaged: remove"):
        rows[3]
    with pytest.raises(UserError, match=r"image\.raw is damaged: remove"):
        OnDisk(path, (2, 3))


def test_evaluation_and_standardisation_read_the_data_in_parts(folder, tmp_path, monkeypatch):
    read = []
    whole = OnDisk.__getitem__
    monkeypatch.setattr(OnDisk, "__getitem__", lambda *a: read.append(out := whole(*a)) or out)
    monkeypatch.setattr("trainers.build._FEATURES", 5 * 16 * 16 * 3)
    monkeypatch.setattr("trainers.loop.compiled._STREAMED", 10 * 16 * 16 * 3)
    config = {
        "dataset": {"name": f"folder:{folder}", "size": 16, "flatten": True},
        "model": {"name": "mlp", "hidden": (), "layer_norm": False},
        "trainer": {"name": "backprop", "epochs": 1, "batch_size": 5},
        "run": {"rows_per_epoch": 1},
    }
    result = trainers.train(config, tmp_path / "run", progress=False)
    assert max(len(rows) for rows in read if rows.ndim == 4) <= 10
    monkeypatch.setattr("trainers.build._FEATURES", 10**9)
    at_once = trainers.evaluate(tmp_path / "run")
    assert at_once["test_reward"] == pytest.approx(result.metrics["test_reward"], rel=1e-5)


def test_training_from_disk_equals_training_from_memory(folder, tmp_path, monkeypatch):
    config = {
        "dataset": {"name": f"folder:{folder}", "size": 16},
        "model": {
            "name": "vae_conv",
            "latent": 3,
            "encoder_channels": (4,),
            "decoder_channels": (4,),
        },
        "trainer": {
            "name": "backprop",
            "objective": "elbo",
            "epochs": 2,
            "batch_size": 16,
            "optimizer": "adam",
        },
        "run": {"rows_per_epoch": 1},
    }
    streamed = trainers.train(config, tmp_path / "streamed", progress=False)
    for section in ({"run": {"seeds": 2}}, {"mesh": {"data": 2}}):
        with pytest.raises(UserError, match=r"run\.seeds, .* must be 1"):
            trainers.train(config | section, tmp_path / "two", progress=False)
    monkeypatch.setattr(input_pipeline.images.folder, "OnDisk", lambda *given: OnDisk(*given)[:])
    whole = trainers.train(config, tmp_path / "whole", progress=False)
    assert streamed.metrics == whole.metrics
    assert streamed.step == whole.step
