import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any, Literal

import pytest
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

import configs
from grlu.errors import UserError
from trainers.config.load import load_config, source_name, to_json
from trainers.config.schema import build, validate


class Net(nnx.Module):
    def __init__(
        self,
        din: int,
        dout: int,
        *,
        hidden: tuple[int, ...] = (8,),
        activation: Literal["relu", "tanh"] = "relu",
        rngs: nnx.Rngs,
    ) -> None:
        if min(hidden, default=1) < 1:
            raise ValueError(f"hidden must be positive, got {hidden}")
        self.layer = nnx.Linear(din, dout, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow:
    epochs: int
    rate: float = 0.1
    clip: float | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"trainer.epochs must be at least 1, got {self.epochs}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noisy(Slow):
    samples: int = 16
    average: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    keep_last: int = 2


def digits(*, subset: int | None = None, validation: int | float = 0.1, root: str | None = None):
    return subset, validation, root


def loader(name: str | None) -> Callable:
    if name != "digits":
        raise UserError(f"there is no data set {name!r}")
    return digits


SECTIONS = {
    "dataset": loader,
    "model": {"net": Net},
    "trainer": {"slow": Slow, "noisy": Noisy},
    "run": Run,
}

CONFIG = {
    "seed": 3,
    "dataset": {"name": "digits", "validation": 100},
    "model": {"name": "net", "hidden": [16, 8]},
    "trainer": {"name": "noisy", "epochs": 2, "rate": 1, "samples": 4},
}


def with_overrides(*overrides: str) -> dict:
    return validate(load_config(CONFIG, overrides), SECTIONS).to_dict()


def test_a_complete_config_is_unchanged_by_validation():
    assert with_overrides() == {
        "seed": 3,
        "dataset": {"name": "digits", "subset": None, "validation": 100, "root": None},
        "model": {"name": "net", "hidden": (16, 8), "activation": "relu"},
        "trainer": {
            "name": "noisy",
            "epochs": 2,
            "rate": 1.0,
            "clip": None,
            "betas": (0.9, 0.99),
            "extra": {},
            "samples": 4,
            "average": False,
        },
        "run": {"keep_last": 2},
    }
    assert type(with_overrides()["trainer"]["rate"]) is float


def test_a_complete_config_builds():
    config = validate(load_config(CONFIG), SECTIONS)
    assert build(digits, config.dataset, "dataset") == (None, 100, None)
    assert build(Noisy, config.trainer, "trainer") == Noisy(epochs=2, rate=1.0, samples=4)
    net = build(Net, config.model, "model", 5, 3, rngs=nnx.Rngs(0))
    assert net.layer.kernel.shape == (5, 3)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("trainer.samples=32", "trainer", "samples", 32),
        ("trainer.rate=1e-3", "trainer", "rate", 1e-3),
        ("trainer.rate=1E3", "trainer", "rate", 1000.0),
        ("trainer.rate=.5", "trainer", "rate", 0.5),
        ("trainer.rate=-2", "trainer", "rate", -2.0),
        ("trainer.clip=null", "trainer", "clip", None),
        ("trainer.clip=None", "trainer", "clip", None),
        ("trainer.average=true", "trainer", "average", True),
        ("trainer.betas=[0.5, 1]", "trainer", "betas", (0.5, 1.0)),
        ("trainer.extra={a: 1}", "trainer", "extra", {"a": 1}),
        ("model.hidden=[256,128]", "model", "hidden", (256, 128)),
        ("model.hidden=(256,128)", "model", "hidden", (256, 128)),
        ("model.hidden=(256,)", "model", "hidden", (256,)),
        ("model.hidden=[]", "model", "hidden", ()),
        ("model.activation=tanh", "model", "activation", "tanh"),
        ("dataset.validation=.2", "dataset", "validation", 0.2),
        ("dataset.root=/a=b.c", "dataset", "root", "/a=b.c"),
        ("run.keep_last=7", "run", "keep_last", 7),
    ],
)
def test_an_override_sets_a_key(override, section, key, value):
    result = with_overrides(override)[section][key]
    assert result == value
    assert type(result) is type(value)


def test_words_in_brackets_need_no_quotes():
    config = load_config("copy_grpo", ["trainer.rewards=(match,exact)"])
    assert config.trainer.rewards == ("match", "exact")


def test_the_last_override_wins_and_seed_has_no_section():
    result = with_overrides("seed=5", "trainer.samples=1", "trainer.samples=2")
    assert (result["seed"], result["trainer"]["samples"]) == (5, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.sampels=3", "trainer has no key 'sampels'; did you mean 'samples'"),
        ("trainer.zzz=3", "trainer has no key 'zzz'; known: epochs, rate"),
        ("trianer.samples=3", "no section 'trianer'; did you mean 'trainer'"),
        ("trainer.samples=abc", "trainer.samples must be an integer, got 'abc'"),
        ("trainer.samples=3.0", "trainer.samples must be an integer, got 3.0"),
        ("trainer.samples=true", "trainer.samples must be an integer, got True"),
        ("trainer.rate=true", "trainer.rate must be a number, got True"),
        ("trainer.clip=abc", "trainer.clip must be a number or null, got 'abc'"),
        ("trainer.average=1", "trainer.average must be true or false, got 1"),
        ("trainer.betas=[1]", "trainer.betas must be a list of 2 values"),
        ("trainer.extra=3", "trainer.extra must be a mapping, got 3"),
        ("model.hidden=3", "model.hidden must be a list of integers, got 3"),
        ("model.hidden=[3, x]", r"model.hidden must be a list of integers, got \(3, 'x'\)"),
        ("model.activation=rule", "model.activation must be one of 'relu', 'tanh', got 'rule'"),
        ("model.rngs=3", "model has no key 'rngs'"),
        ("model.din=3", "model has no key 'din'"),
        ("model.name=nett", "there is no model 'nett'; did you mean 'net'"),
        ("model.name=null", "model.name is missing: it must be one of net"),
        ("model.name=[net]", "there is no model"),
        ("dataset.name=mnist", "there is no data set 'mnist'"),
        ("run.name=x", "run has no key 'name'"),
        ("seed=a", "seed must be an integer from 0 to .*, got 'a'"),
        ("seed=-1", "seed must be an integer from 0 to .*, got -1"),
        ("seed=true", "seed must be an integer from 0"),
        ("seed=99999999999", "seed must be an integer from 0"),
        ("trainer.samples", "section.key=value"),
        ("trainer=noisy", "section.key=value"),
        ("seed.x=3", "section.key=value"),
        ("trainer.=3", "section.key=value"),
        ("=3", "no section"),
        ("trainer.samples=[1", r"'\[1' is not a value in YAML"),
        ("trainer.samples=(1", r"'\(1' is not a value in YAML"),
    ],
)
def test_a_wrong_override_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        with_overrides(override)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "trainr": {}}, "no section 'trainr'; did you mean 'trainer'"),
        ({**CONFIG, "trainer": 3}, "trainer must be a section of keys and values, got 3"),
        ({**CONFIG, "trainer": {"name": "slow"}}, "trainer.epochs is missing: it must be an int"),
        ({"seed": 1}, "there is no data set None"),
    ],
)
def test_a_wrong_config_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        validate(load_config(config), SECTIONS)
    with pytest.raises(UserError, match=message):
        validate(config, SECTIONS)


def test_another_trainer_drops_the_keys_of_the_file_only(caplog):
    caplog.set_level(logging.INFO, "grlu")
    trainer = with_overrides("trainer.name=slow")["trainer"]
    assert trainer["name"] == "slow"
    assert (trainer["epochs"], trainer["rate"]) == (2, 1.0)  # shared keys are kept
    assert "samples" not in trainer
    assert "trainer 'slow' has no samples: dropped" in caplog.text
    with pytest.raises(UserError, match="trainer has no key 'samples'"):
        with_overrides("trainer.name=slow", "trainer.samples=4")
    with pytest.raises(UserError, match="trainer has no key 'samples'"):  # the name is unchanged
        validate({**CONFIG, "trainer": {**CONFIG["trainer"], "name": "slow"}}, SECTIONS)


def test_nothing_is_dropped_if_the_name_stays():
    with pytest.raises(UserError, match="no key 'sampels'"):
        validate(
            load_config(
                {**CONFIG, "trainer": {"name": "noisy", "epochs": 1, "sampels": 1}},
                ["trainer.name=noisy"],
            ),
            SECTIONS,
        )


def test_build_names_the_section_once():
    with pytest.raises(UserError, match=r"^model: hidden must be positive, got \(0,\)$"):
        build(Net, {"name": "net", "hidden": (0,)}, "model", 5, 3, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"^trainer\.epochs must be at least 1, got 0$"):
        build(Slow, {"name": "slow", "epochs": 0}, "trainer")
    with pytest.raises(UserError, match="trainer has no key 'sampels'"):
        build(Noisy, {"epochs": 1, "sampels": 3}, "trainer")


def test_build_passes_the_name_if_it_is_a_parameter():
    def load(name: str, **options: Any) -> tuple:
        return name, options

    assert build(load, {"name": "digits", "x": 1}, "dataset") == ("digits", {"x": 1})


def test_a_saved_config_reads_back_equal(tmp_path):
    config = validate(load_config(CONFIG), SECTIONS)
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert json.loads(path.read_text())["model"]["hidden"] == [16, 8]
    again = load_config(path)
    assert again == config
    assert validate(again, SECTIONS) == config


def test_a_config_in_python_may_change_freely():
    config = load_config(CONFIG)
    config.trainer.rate = 3
    config.trainer.clip = 1.5
    config.model.hidden = [4]
    result = validate(config, SECTIONS)
    assert (result.trainer.rate, result.trainer.clip, result.model.hidden) == (3.0, 1.5, (4,))
    result.trainer.clip = None
    assert validate(result, SECTIONS).trainer.clip is None
    assert load_config(FrozenConfigDict(CONFIG)) == load_config(ConfigDict(CONFIG))
    assert config != load_config(CONFIG)  # the caller's dict is not changed


def test_a_config_without_a_json_form_is_refused():
    with pytest.raises(UserError, match="can't be saved"):
        to_json(ConfigDict({"x": print}))


def write(folder, name: str, text: str):
    path = folder / name
    path.write_text(text)
    return path


PYTHON = '''"""A config."""
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({"trainer": {"name": "slow", "epochs": 5}})
'''


def test_every_kind_of_file_is_read(tmp_path):
    yaml = "seed: 1\ndataset:\n  name: digits\nmodel: {name: net}\ntrainer:\n  rate: 1e-3\n"
    assert load_config(write(tmp_path, "a.py", PYTHON)).trainer.epochs == 5
    assert load_config(str(write(tmp_path, "a.yaml", yaml))).trainer.rate == 1e-3
    assert load_config(write(tmp_path, "a.yml", yaml)).dataset.name == "digits"
    assert load_config(write(tmp_path, "a.json", json.dumps(CONFIG))).model.hidden == (16, 8)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "import ml_collections\nx = (\n", "a.py, line 2: not valid Python"),
        ("a.py", "x = 1\n\ny = 1 / 0\n", "a.py, line 3: ZeroDivisionError: division by zero"),
        ("a.py", "def get_config():\n    return x\n", "a.py, line 2: NameError"),
        ("a.py", "import no_such_module_here\n", "a.py, line 1: ModuleNotFoundError"),
        ("a.py", "x = '\0'\n", "a.py.* null"),
        ("a.py", "x = 1\n", "defines no get_config"),
        ("a.py", "def get_config():\n    return 3\n", "must hold sections"),
        ("a.json", '{"model": {},\n "trainer": }', "a.json, line 2: not valid JSON"),
        ("a.json", "[1, 2]", "must hold sections"),
        ("a.json", "  \n", "is empty"),
        ("a.json", '{"models": {}}', "no section 'models'; did you mean 'model'"),
        ("a.yaml", "model:\n  name: x\n  - y\n", "a.yaml, line 3: not valid YAML"),
        ("a.yaml", "model: [1\n", "not valid YAML"),
        ("a.yaml", "just text\n", "must hold sections"),
        ("a.yaml", "# nothing\n", "must hold sections"),
        ("a.yaml", "", "is empty"),
        ("a.yaml", "tranier: {}\n", "no section 'tranier'; did you mean 'trainer'"),
        ("a.yaml", "model: {type: a, name: b}\n", "model.type and model.name are the same"),
        ("a.yaml", "dataset: {batch_size: 3}\ntrain: 3\n", "trainer must be a section"),
        ("a.yaml", "train: {}\ntrainer: {}\n", "train and trainer are the same section"),
    ],
)
def test_an_unreadable_file_is_refused(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, name, text))


def test_a_missing_or_binary_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text"):
        load_config(tmp_path / "a.json")
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="nor is it a path that ends in"):
        load_config(tmp_path / "d.toml")
    with pytest.raises(UserError, match="there is no config 'no_such_config'"):
        load_config("no_such_config")


def test_the_layout_with_train_is_translated(tmp_path, caplog):
    text = """
dataset: {name: digits, batch_size: 32, num_workers: 4}
model: {type: net, hidden: [4]}
train: {epochs: 3, device: cuda}
run:
"""
    assert load_config(write(tmp_path, "a.yaml", text)).to_dict() == {
        "dataset": {"name": "digits"},
        "model": {"name": "net", "hidden": (4,)},
        "trainer": {"epochs": 3, "batch_size": 32},
        "run": {},
    }
    assert "ignored: dataset.num_workers is not supported" in caplog.text
    assert "ignored: trainer.device is not supported" in caplog.text


def test_config_names_have_summaries():
    for name, summary in configs.names().items():
        assert not name.startswith("_")
        assert summary, f"configs/{name}.py has no docstring"
        config = load_config(name).to_dict()
        assert all(stage["name"] for stage in config.get("stages", [config["dataset"]]))


def test_a_run_is_named_after_its_config(tmp_path):
    assert source_name("mnist_grlu") == "mnist_grlu"
    assert source_name(tmp_path / "mine.yaml") == "mine"
    assert source_name(CONFIG) == "run"
