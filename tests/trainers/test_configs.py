"""Every config is consistent and traces; one of each kind also runs one step."""

import functools
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

import configs
import trainers
from input_pipeline import tokenizers
from input_pipeline.images import tfds as tfds_images
from input_pipeline.tokenizers import Characters
from trainers.build import make_experiment
from trainers.loop.compiled import compile_chunk, compile_evaluation, require_step
from trainers.pipelines.stages import check

README = pathlib.Path(__file__).parents[2] / "README.md"
# Keys of a config's data that its model depends on.
# Configs that take seconds to compile even for one step.
LARGE = {"copy_es", "mnist_deep_n128", "mnist_deep_skip_n128", "mnist_iwae", "sonnets_rlhf"}
KEPT = ("renumber", "normalize", "flatten", "binarize")


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Blank data sets, as large as those that need preparation."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    (tmp_path / "sets").mkdir()
    letters = "".join(map(chr, range(32, 32 + 65)))
    (tmp_path / "sets" / "tinyshakespeare.txt").write_text(letters * (1_115_394 // 65))
    gpt2 = Characters("".join(map(chr, range(50_257))))
    monkeypatch.setattr(tokenizers, "GPT2", lambda folder: gpt2)

    def blank(key, *_):
        size = 60_000 if key.endswith("train") else 10_000
        label = np.arange(size, dtype=np.int32) % 10
        return {"image": np.zeros((size, 28, 28, 1), np.uint8), "label": label, "num_classes": 10}

    monkeypatch.setattr(tfds_images, "find", lambda name, root: root / name)
    monkeypatch.setattr(tfds_images, "fingerprint", lambda folder: "")
    monkeypatch.setattr(tfds_images, "cached", blank)


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize("name", configs.names())
def test_every_config_is_consistent_and_traces(name, sets):
    """Trace the full sizes, without computing anything."""
    traces(trainers.resolve(name))


def commands():
    """Return the README's changes of configs, except for the reader's own files."""
    for line in re.findall(r"^grlu train (.*)$", README.read_text(), re.M):
        name, *overrides = shlex.split(re.split(r"  +| --| &", line)[0])
        if overrides and not {"RUN", "PATH", "CONFIG", "mine.py"} & set(
            re.findall(r"[\w.]+", line)
        ):
            yield name, *overrides


@pytest.mark.slow
@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_of_the_readme_is_consistent_and_traces(command, sets):
    name, *overrides = command
    config = trainers.resolve(name, overrides)
    if "stages" in config:
        check(config)
    else:
        require_step(make_experiment(config))


def traces(config):
    for experiment in check(config) if "stages" in config else [make_experiment(config)]:
        trainer, state = experiment.trainer, jax.eval_shape(experiment.init)
        train, test = (shapes(dict(split)) for split in (experiment.train, experiment.test))
        rows = experiment.order(0)[..., :2, :]
        chunk = compile_chunk(experiment)
        shape = functools.partial(jax.eval_shape, chunk)
        if hasattr(chunk.func, "eval_shape"):  # Otherwise it is a Python loop.
            shape = functools.partial(chunk.func.eval_shape, *chunk.args)
        after, averages, _ = shape(state, train, rows, 2)
        assert shapes(after) == state
        found = jax.eval_shape(compile_evaluation(experiment), state, test)
        seeds = (experiment.run.seeds,) if experiment.run.seeds > 1 else ()
        for values, names in ((averages, trainer.metrics), (found, trainer.evaluated)):
            assert {name: value.shape for name, value in values.items()} == dict.fromkeys(
                names, seeds
            )


def kinds(name):
    """Return the keys of each stage that decide which code runs."""
    config = trainers.resolve(name).to_dict()
    return {
        (stage["model"]["name"], stage["trainer"]["name"], stage["trainer"].get("objective"))
        for stage in config.get("stages", [config])
    }


def one_of_each_kind():
    """Return configs that cover all kinds of stages."""
    seen = set()
    for name in sorted(configs.names(), key=lambda name: -len(kinds(name))):
        if not kinds(name) <= seen:
            seen |= kinds(name)
            yield name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name
        for name in one_of_each_kind()
    ],
)
def test_one_config_of_each_kind_runs_one_step(name, tmp_path):
    """Train each config's own model and trainer on the embedded data."""
    config = trainers.resolve(name).to_dict()
    kept = {k: v for k, v in config["dataset"].items() if k in KEPT}
    config["dataset"] = kept | {"name": "digits", "subset": 200}
    stages = config.get("stages", [config])
    language = stages[0]["model"]["name"] == "gpt"
    if language:
        config["dataset"] = {"name": "sonnets", "length": 16, "stride": 64}
    for stage in stages:
        trainer = stage["trainer"]
        if language:
            stage["model"]["layers"] = 1
            if "stages" in config:
                stage.pop("dataset", None)
        for key, most in (("depth", 3), ("width", 32)):
            if key in stage["model"]:
                stage["model"][key] = min(stage["model"][key], most)
        if "prompt" in trainer:
            trainer |= {"prompt": 8, "horizon": 2}
        trainer["epochs"] = min(trainer["epochs"], 1)
        trainer["batch_size"] = min(trainer["batch_size"], 16)
        for key in ("samples", "population"):
            if key in trainer:
                trainer[key] = 2
        if trainer["schedule"] == "warmup_cosine":
            trainer["schedule"] = "cosine"
    result = trainers.train(config, tmp_path / "run", progress=False)
    trainer = stages[-1]["trainer"]
    policy = trainer.get("objective", "completion_reward") == "completion_reward"
    assert np.isfinite([v for k, v in result.metrics.items() if k.startswith("test_")]).all()
    assert 0 <= result.metrics.get("test_greedy_accuracy" if policy else "test_accuracy", 0) <= 1
    assert ("test_perplexity" in result.metrics) == (language and not policy)
