"""Image summaries of a variational autoencoder in TensorBoard."""

import io

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import input_pipeline
import trainers


@pytest.fixture
def config():
    return {
        "dataset": {"name": "digits", "normalize": "unit", "binarize": "static"},
        "model": {"name": "vae_mlp", "latent": 3, "encoder_hidden": (8,), "decoder_hidden": (8,)},
        "trainer": {
            "name": "backprop",
            "objective": "elbo",
            "optimizer": "adam",
            "epochs": 12,
            "batch_size": 256,
        },
        "run": {"rows_per_epoch": 1},
    }


def images(run):
    """Return images by tag and step."""
    (path,) = run.glob("events.out.tfevents.*")
    found, data, at = {}, path.read_bytes(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        for value in event.summary.value:
            if value.HasField("image"):
                image = Image.open(io.BytesIO(value.image.encoded_image_string))
                found[value.tag, event.step] = np.asarray(image)
    return found


def test_reconstructions_and_samples_are_shown_ten_times_at_most(config, tmp_path):
    trainers.train(config, tmp_path / "run", progress=False)
    found = images(tmp_path / "run")
    steps = [4 * epoch for epoch in (2, 4, 6, 8, 10, 12)]
    assert set(found) == {(tag, s) for tag in ("reconstructions", "samples") for s in steps}
    shown = found["reconstructions", 48]
    assert shown.shape[:2] == (17, 71)
    data = input_pipeline.load(**config["dataset"])
    first = 255 * (data.validation["image"][0, ..., 0] > 0)
    np.testing.assert_array_equal(shown[:8, :8, 0], first)
    assert found["samples", 48].shape[:2] == (35, 71)
    assert (found["samples", 48] != found["samples", 8]).any()


def test_a_classifier_shows_no_pictures(config, tmp_path):
    config["model"] = {"name": "mlp", "hidden": (8,)}
    config["trainer"] |= {"objective": "classification", "epochs": 1}
    trainers.train(config, tmp_path / "run", progress=False)
    assert images(tmp_path / "run") == {}
