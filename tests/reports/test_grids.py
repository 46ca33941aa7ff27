"""Pictures of a real run's generative model."""

import numpy as np
import pytest

import trainers
from reports.learned import learned
from reports.pictures.grids import image_grid
from reports.record import read_records
from reports.report import write_report


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagined") / "vae"
    config = {
        "dataset": {"name": "digits", "normalize": "unit", "binarize": "static"},
        "model": {"name": "ivae", "latent": 3, "encoder_hidden": (16,), "decoder_hidden": (16,)},
        "trainer": {
            "name": "svi",
            "epochs": 1,
            "batch_size": 32,
            "optimizer": "adam",
            "svi_steps": 4,
            "svi_natural": True,
            "svi_learning_rate": 0.2,
        },
        "run": {"rows_per_epoch": 1},
    }
    trainers.train(config, folder, progress=False)
    return folder


def test_images_of_a_generative_model_are_consistent(path):
    found = learned(read_records([path])[0])
    made = found.imagined
    assert made.samples.shape == (5, 10, 8, 8, 1)
    assert made.traversals.shape == (3, 9, 8, 8, 1)
    assert sorted(made.units) == [0, 1, 2]
    # Images change along a row of a traversal.
    assert (made.traversals[0, 0] != made.traversals[0, -1]).any()
    assert made.lines.shape == (5, 11, 8, 8, 1)
    assert made.films.shape == (5, len(made.moments) + 1, 8, 8, 1)
    assert made.moments[0] == 0
    assert made.moments[-1] == 4
    for images in (made.samples, made.traversals, made.lines, made.films):
        assert images.min() >= 0
        assert images.max() <= 1
    # Outputs are probabilities, not logits.
    assert 0 <= found.outputs.min() <= found.outputs.max() <= 1


def test_report_shows_generative_pictures(path):
    index = write_report([path])
    names = ("samples", "traversals", "interpolation", "refinement", "corrupted_steps")
    for name in (*names, "corrupted_bars"):
        assert (index.parent / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "Inference in steps" in index.read_text()


@pytest.mark.parametrize("depth", [1, 3])
def test_grids_of_grey_and_of_colour(depth):
    images = np.random.default_rng(0).random((2, 3, 5, 4, depth))
    drawn = image_grid("g", "Grid", "Images.", images, rows=["a", "b"], columns=["1", "2", "3"])
    assert drawn.light[:4] == drawn.dark[:4] == b"\x89PNG"
    assert drawn.light != drawn.dark
