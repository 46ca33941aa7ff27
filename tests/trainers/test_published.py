import json

import pytest

from grlu.errors import UserError
from trainers.config.load import load_config
from trainers.config.schema import validate
from trainers.registry import SECTIONS

# The file in the original project's documentation, verbatim.
ORIGINAL = """{"model": {"layer_sizes": [784, 256, 10]},
 "training": {"epochs": 10, "batch_size": 1, "n_perturbations": 128, "noise_max": 0.1,
 "noise_min": 0.0, "lr_max": 0.1, "lr_min": 0.0, "k": 0.5, "seed": 42}}"""


def load(original: dict, *overrides: str):
    return validate(load_config(original, overrides), SECTIONS)


def test_the_original_file_is_translated(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(ORIGINAL)
    config = validate(load_config(path), SECTIONS)
    assert config.seed == 42
    assert (config.dataset.name, config.dataset.validation) == ("mnist", 0)
    model = config.model
    assert (model.name, model.hidden, model.layer_norm) == ("mlp", (256,), True)
    assert (model.activation, model.topk, model.topk_mode) == ("topk", 0.5, "gumbel")
    trainer = config.trainer
    assert trainer.name == "grlu"
    assert (trainer.epochs, trainer.batch_size, trainer.samples) == (10, 1, 128)
    assert (trainer.learning_rate, trainer.learning_rate_end) == (0.1, 0.0)
    assert (trainer.sigma, trainer.sigma_end) == (0.1, 0.0)
    assert (trainer.schedule, trainer.sigma_schedule) == ("cosine", "cosine")
    assert (trainer.schedule_per, trainer.optimizer) == ("epoch", "sgd")
    # The published rule: noise after the activation, no 1/σ², a sum over the batch.
    assert (trainer.noise, trainer.site, trainer.inputs) == ("gaussian", "post", "noisy")
    assert (trainer.scaled, trainer.reduction) == (False, "sum")


@pytest.mark.parametrize("training", [{"k": None}, {"n_perturbations": 16}])
def test_without_k_the_activation_is_relu(training):
    config = load({"model": {"layer_sizes": [784, 10, 5, 10]}, "training": training})
    assert (config.model.activation, config.model.hidden) == ("relu", (10, 5))
    assert config.trainer.samples == training.get("n_perturbations", 128)
    assert (config.seed, config.trainer.epochs, config.trainer.sigma) == (42, 10, 0.1)


def test_the_baseline_has_no_noise():
    config = load({"model": {"layer_sizes": [784, 256, 10]}, "training": {"epochs": 50}})
    trainer = config.trainer
    assert (trainer.name, trainer.epochs, trainer.batch_size) == ("backprop", 50, 256)
    assert (trainer.learning_rate, trainer.learning_rate_end) == (0.1, 0.0)
    assert (trainer.schedule, trainer.schedule_per, trainer.optimizer) == ("cosine", "epoch", "sgd")
    assert config.model.activation == "relu"


def test_overrides_apply_after_translation():
    config = load(json.loads(ORIGINAL), "trainer.name=backprop")
    assert config.trainer.name == "backprop"
    assert config.trainer.epochs == 10
    assert load(json.loads(ORIGINAL), "trainer.samples=2").trainer.samples == 2


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ({}, {"n_perturbation": 3}, "training has no key 'n_perturbation'"),
        ({}, {"k": 0.5, "n_perturbation": 3}, "did you mean 'n_perturbations'"),
        ({}, {"k": "half"}, "training.k must be a number or null, got 'half'"),
        ({}, {"k": 0.5, "epochs": 1.5}, "training.epochs must be an integer, got 1.5"),
        ({}, {"n_perturbations": 0}, "training: samples must be a positive integer"),
        ({"layer_size": [784, 10]}, {}, "model has no key 'layer_size'; did you mean"),
        ({"layer_sizes": []}, {}, "must be positive integers"),
        ({"layer_sizes": [784]}, {}, "from the 784 pixels"),
        ({"layer_sizes": [784, 0, 10]}, {}, "must be positive integers"),
        ({"layer_sizes": "784"}, {}, "model.layer_sizes must be a list of integers"),
        ({"layer_sizes": [784, 256, 5]}, {}, "to its 10 classes"),
        ({"layer_sizes": None}, {}, "model.layer_sizes must be a list of integers"),
        (3, {}, "model must be a section of keys and values"),
    ],
)
def test_a_wrong_original_file_is_refused(model, training, message):
    original = {"model": {"layer_sizes": [784, 10]} if model == {} else model, "training": training}
    with pytest.raises(UserError, match=message):
        load_config(original)


def test_an_unknown_section_is_refused():
    with pytest.raises(UserError, match="no section 'modle'; known: model, training"):
        load_config({"modle": {}, "training": {}})
    with pytest.raises(UserError, match=r"model\.layer_sizes is missing"):
        load_config({"training": {}})
