"""Folders of images: mixed sizes, hashed splits, what is unreadable, and training from disk."""

import logging

import numpy as np
import pytest
from PIL import Image

import input_pipeline
import trainers
from grlu.errors import UserError


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


def test_any_size_becomes_one_and_subfolders_are_classes(folder):
    data = load(folder)
    assert data.example_shape == (16, 16, 3)
    assert data.num_classes == 2
    assert isinstance(data.train["image"], np.memmap)
    sizes = [len(split["label"]) for split in (data.train, data.validation, data.test)]
    assert sum(sizes) == 120
    assert sizes[0] > 80
    for split in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(split["image"][:, 3, 3, 0], 40 + 150 * split["label"])
    grey = load(folder, colour="grey", flatten=True)
    assert grey.preprocess(grey.test)["image"].shape[1:] == grey.example_shape == (256,)


def test_a_new_image_moves_no_other(folder):
    before = load(folder)
    Image.new("RGB", (20, 20)).save(folder / "dark" / "new.png")
    after = load(folder)
    assert (
        len(after.train["label"]) + len(after.validation["label"]) + len(after.test["label"]) == 121
    )
    assert abs(len(after.test["label"]) - len(before.test["label"])) <= 1


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
        ({"validation": 0.6, "test": 0.5}, "must be shares of the images"),
    ],
)
def test_wrong_options_are_refused(folder, options, sentence):
    with pytest.raises(UserError, match=sentence):
        input_pipeline.load(f"folder:{folder}", **options)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        load(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no images"):
        load(tmp_path)


def test_training_from_disk_is_training_from_memory(folder, tmp_path, monkeypatch):
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
    monkeypatch.setattr(input_pipeline.Data, "streamed", False)
    whole = trainers.train(config, tmp_path / "whole", progress=False)
    assert streamed.metrics == whole.metrics
    assert streamed.step == whole.step
