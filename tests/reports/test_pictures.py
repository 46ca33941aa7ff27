"""Computable content of the pictures, and their two themes."""

import io

import numpy as np
import pytest
from PIL import Image

from reports.pictures.confusion import confusion_matrix
from reports.pictures.continual import accuracy_matrix
from reports.pictures.images import receptive_fields, reconstructions
from reports.pictures.latent import latent_map, principal_components
from reports.pictures.timeline import timeline
from reports.record import Record
from reports.style import DARK, LIGHT
from reports.units import duration, number


def stage(label, steps, seconds):
    return Record(label, None, {}, {"step": np.array([0.0, steps])}, seconds)


def record(*stages):
    return Record("line", None, {}, {}, None, stages)


RANDOM = np.random.default_rng(0)
PICTURES = {
    "confusion": lambda: confusion_matrix(RANDOM.integers(0, 9, (10, 10)), 2, range(10), of="run"),
    "no errors": lambda: confusion_matrix(np.diag([3, 0, 4]), 1, [5, 7, 9]),
    "many classes": lambda: confusion_matrix(RANDOM.integers(0, 9, (47, 47)), 1, range(47)),
    "fields": lambda: receptive_fields(RANDOM.normal(size=(11, 5, 5, 1)), False),
    "silent fields": lambda: receptive_fields(np.zeros((3, 5, 5, 1)), False),
    "colour kernels": lambda: receptive_fields(RANDOM.normal(size=(3, 3, 3, 3)), True),
    "reconstructions": lambda: reconstructions(*RANDOM.normal(size=(2, 1, 8, 8, 3))),
    "latent": lambda: latent_map(RANDOM.normal(size=(50, 3)), np.arange(50) % 10, range(10)),
    "one unit": lambda: latent_map(RANDOM.normal(size=(50, 1)), np.arange(50) % 30, range(30)),
    "timeline": lambda: timeline(record(stage("a", 5, 2.0), stage("b", 7, None))),
    "continual": lambda: accuracy_matrix(
        {"tasks": ["a", "b"], "accuracy": [[1, 0], [0.5, 1]], "average_accuracy": 0.75}
        | {"forgetting": 0.5, "forgetting_sd": 0.1}
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_both_themes(name):
    drawn = PICTURES[name]()
    for png, theme in ((drawn.light, LIGHT), (drawn.dark, DARK)):
        image = Image.open(io.BytesIO(png)).convert("RGB")
        surface = tuple(int(theme.surface[i : i + 2], 16) for i in (1, 3, 5))
        corners = [(0, 0), (image.width - 1, 0), (0, image.height - 1)]
        assert {image.getpixel(corner) for corner in corners} == {surface}
        assert len(image.getcolors(image.width * image.height)) > 20


def test_captions_contain_the_numbers():
    counts = np.array([[8, 2], [1, 9]])
    assert confusion_matrix(counts, 2, "ab").caption.startswith(
        "3 of 20 test predictions are wrong, summed"
    )
    assert "75.0 % on average" in PICTURES["continual"]().caption
    assert "50.0 ± 10.0 points forgotten" in PICTURES["continual"]().caption


def test_principal_components_of_a_plane():
    plane = RANDOM.normal(size=(100, 2)) * [3, 1]
    directions = np.linalg.qr(RANDOM.normal(size=(6, 2)))[0]
    placed, shares = principal_components(plane @ directions.T + 5)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > shares[1]
    # Distances within the plane are kept.
    pairs = [np.linalg.norm(p[:50] - p[50:], axis=1) for p in (plane, placed)]
    np.testing.assert_allclose(*pairs, rtol=1e-9)


def test_timeline_of_untrained_stages_is_none():
    assert timeline(record(stage("a", 0, None))) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.84, "3.8 s"),
        (31.2, "31 s"),
        (200, "3 min 20 s"),
        (3720, "62 min 0 s"),
        (7300, "2 h 1 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_numbers_have_their_unit():
    assert number("accuracy", 0.95866, 0.00129) == "95.87 ± 0.13"
    assert number("reward", -0.14041, None) == "−0.1404"
