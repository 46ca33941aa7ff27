"""Every config is consistent, every program traces, and one config of each kind runs."""

import functools
import json
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
from trainers.loop.compiled import compile_chunk, compile_evaluation
from trainers.pipelines.stages import check, stage_config

README = pathlib.Path(__file__).parents[2] / "README.md"
# Configs that take seconds to compile even for one step.
LARGE = {"mnist_deep_n128", "mnist_deep_skip_n128", "mnist_iwae"}
# Configs of kinds that other tests train: in `test_runs.py`, `test_pipelines.py`, `test_rlhf.py`
# and `test_completion_objective.py`.
TRAINED = ("digits_backprop", "digits_slow_fast", "sonnets_rlhf", "shakespeare_ppo", "copy_es")
# Keys of a config's data that its model depends on.
KEPT = ("renumber", "normalize", "flatten", "binarize", "crop")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Blank data sets, as large as those that need preparation."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare(monkeypatch, tmp_path_factory.mktemp("sets"))
        yield


def prepare(monkeypatch, folder):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    letters = "".join(map(chr, range(32, 32 + 65)))
    (folder / "tinyshakespeare.txt").write_text(letters * (1_115_394 // 65))
    gpt2 = Characters("".join(map(chr, range(50_257))))
    monkeypatch.setattr(tokenizers, "GPT2", lambda folder: gpt2)

    @functools.cache
    def blank(key, *_):
        size = 60_000 if key.endswith("train") else 10_000
        label = np.arange(size, dtype=np.int32) % 10
        return {"image": np.zeros((size, 28, 28, 1), np.uint8), "label": label, "num_classes": 10}

    monkeypatch.setattr(tfds_images, "find", lambda name, root: root / name)
    monkeypatch.setattr(tfds_images, "fingerprint", lambda folder: "")
    monkeypatch.setattr(tfds_images, "cached", blank)


@functools.cache
def resolve(name, *overrides):
    return trainers.resolve(name, overrides)


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def kinds(name):
    """Return the keys of each stage that decide which code runs."""
    config = resolve(name).to_dict()
    return {
        (stage["model"]["name"], stage["trainer"]["name"], stage["trainer"].get("objective"))
        for stage in config.get("stages", [config])
    }


def one_of_each_kind():
    """Yield configs that cover all other kinds of stages."""
    seen = set().union(*map(kinds, TRAINED))
    for name in sorted(configs.names(), key=lambda name: -len(kinds(name))):
        if not kinds(name) <= seen:
            seen |= kinds(name)
            yield name


def commands():
    """Return the README's changes of configs, except for the reader's own files."""
    for line in re.findall(r"^grlu train (.*)$", README.read_text(), re.M):
        name, *overrides = shlex.split(re.split(r"  +| --| &", line)[0])
        if overrides and not {"RUN", "PATH", "CONFIG", "mine.py"} & set(
            re.findall(r"[\w.]+", line)
        ):
            yield name, *overrides


def stages_of(config):
    """Return the configs of a pipeline's stages, or the config itself."""
    if "stages" not in config:
        return [config]
    pipeline = config.to_dict()
    return [stage_config(pipeline, stage) for stage in pipeline["stages"]]


def program(config):
    """Return what decides which program a config runs: all its settings but sizes and rates."""

    def kind(value):
        if isinstance(value, dict):
            return {key: kind(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [kind(entry) for entry in value]
        if isinstance(value, bool | str | None):
            return value
        # Zero switches a term off, and one may drop an axis.
        return min(value, 2) if isinstance(value, int) else bool(value)

    given = config.to_dict()
    found = {key: kind(given[key]) for key in ("model", "trainer", "mesh")}
    found["dataset"] = kind({key: given["dataset"].get(key) for key in KEPT})
    found["seeds"] = kind(given["run"]["seeds"])
    return json.dumps(found | {"features": "features" in given}, sort_keys=True)


def new_programs():
    """Yield each config and command of the README, and which of its stages run new programs."""
    seen = {program(stage) for name in one_of_each_kind() for stage in stages_of(resolve(name))}
    for name, *overrides in dict.fromkeys([*((name,) for name in configs.names()), *commands()]):
        new = []
        for i, stage in enumerate(stages_of(resolve(name, *overrides))):
            if (key := program(stage)) not in seen:
                seen.add(key)
                new.append(i)
        yield pytest.param(name, overrides, new, id=" ".join([name, *overrides]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "overrides", "new"), list(new_programs()))
def test_every_config_and_command_is_consistent_and_every_program_traces(
    name, overrides, new, sets
):
    """Build the full sizes, and trace each program once, without computing anything."""
    config = resolve(name, *overrides)
    experiments = check(config) if "stages" in config else [make_experiment(config)]
    for i in new:
        traces(experiments[i])


def traces(experiment):
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
        assert {name: value.shape for name, value in values.items()} == dict.fromkeys(names, seeds)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name
        for name in one_of_each_kind()
    ],
)
def test_one_config_of_each_kind_runs_one_step(name, tmp_path):
    """Train each config's own model and trainer on the embedded data."""
    config = resolve(name).to_dict()
    kept = {k: v for k, v in config["dataset"].items() if k in KEPT}
    config["dataset"] = kept | {"name": "digits", "subset": 200}
    stages = config.get("stages", [config])
    language = stages[0]["model"]["name"] == "gpt"
    if language:
        config["dataset"] = {"name": "sonnets", "length": 16, "stride": 64}
    for stage in stages:
        model, trainer = stage["model"], stage["trainer"]
        for key, most in (("layers", 1), ("depth", 2), ("width", 32)):
            if key in model:
                model[key] = min(model[key], most)
        if "hidden" in model:
            model["hidden"] = model["hidden"][:2]
        trainer["epochs"] = min(trainer["epochs"], 1)
        trainer["batch_size"] = min(trainer["batch_size"], 16)
        for key in ("samples", "population"):
            if key in trainer:
                trainer[key] = 2
        if trainer["schedule"] == "warmup_cosine":
            trainer["schedule"] = "cosine"
    result = trainers.train(config, tmp_path / "run", progress=False)
    assert np.isfinite([v for k, v in result.metrics.items() if k.startswith("test_")]).all()
    assert 0 <= result.metrics.get("test_accuracy", 0) <= 1
    assert ("test_perplexity" in result.metrics) == language
