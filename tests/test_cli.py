"""The command line in real processes: output and exit status.

Every process finds a package `tensorflow` that ends it with status 99, so that each test here also
shows that no command imports TensorFlow.
"""

import gzip
import json
import math
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import configs
import input_pipeline
import models
import trainers
from grlu.cli import app
from grlu.errors import UserError
from reports import write_report
from tests.processes import Commands

ROOT = pathlib.Path(__file__).parents[1]
# The cache of compiled programs is not locked: JAX compiles again after a collision.
WARNINGS = ["-W", "error", "-W", "ignore:Error reading persistent compilation cache entry"]
SMALL = ["digits_grlu", "model.hidden=[64]", "trainer.samples=2", "trainer.epochs=1"]


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """Return a folder with a package `tensorflow` that ends any process that imports it."""
    folder = tmp_path_factory.mktemp("trap")
    (folder / "tensorflow").mkdir()
    (folder / "tensorflow" / "__init__.py").write_text("import os; os._exit(99)")
    return folder


@pytest.fixture(scope="module")
def grlu(trap):
    """Run a `grlu` command to its end, in its own process and without data sets."""
    base = {
        **os.environ,
        "PYTHONPATH": f"{trap}{os.pathsep}{ROOT}",
        "TFDS_DATA_DIR": str(trap / "empty"),
        "COLUMNS": "100",
    }
    commands = Commands(base, WARNINGS)

    def run(*arguments, cwd=trap, program=None, **environment):
        if program is None:
            process = commands.start(arguments, cwd, **environment)
            out, errors = process.communicate()
            return subprocess.CompletedProcess(arguments, process.returncode, out, errors)
        return subprocess.run(
            [sys.executable, *WARNINGS, *program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=cwd,
            env={**base, **environment},
        )

    yield run
    commands.close()


@pytest.fixture(scope="module")
def trained(grlu, tmp_path_factory):
    """Train a small run from the command line in its default folder."""
    cwd = tmp_path_factory.mktemp("trained")
    done = grlu("train", *SMALL, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, done


@pytest.fixture
def run_copy(trained, tmp_path):
    """Copy that run to a folder that the test may change."""
    (run,) = (trained[0] / "runs").iterdir()
    return shutil.copytree(run, tmp_path / "run")


def sentence(done, status):
    """Return the message of a failed command: one line on stderr, nothing on stdout."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_importing_tensorflow_ends_the_process(grlu):
    assert grlu("import tensorflow", program=["-c"]).returncode == 99


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("", ["list", "train", "resume", "evaluate", "report", "data", "Exit status"]),
        ("list", []),
        ("train", ["config", "SECTION.KEY=VALUE", "--run", "--overwrite", "--quiet"]),
        ("resume", ["RUN", "--quiet"]),
        ("evaluate", ["RUN", "--json", "--best"]),
        ("report", ["RUN...", "--out"]),
        ("data", ["prepare"]),
        ("data prepare", ["name", "--from", "--data-dir"]),
    ],
)
def test_help_names_every_option(command, options):
    done = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    for option in ["Usage", "--help", *options]:
        assert option in done.stdout


def test_help_and_the_package_load_neither_jax_nor_tensorflow(grlu):
    code = """
import sys
import grlu, grlu.errors, grlu.cli
sys.argv = ["grlu", "--help"]
try:
    grlu.cli.main()
except SystemExit as end:
    assert end.code == 0, end.code
loaded = {"jax", "flax", "numpy", "tensorflow", "tensorflow_datasets"} & set(sys.modules)
assert not loaded, loaded
"""
    done = grlu(code, program=["-c"])
    assert done.returncode == 0, done.stderr


def test_list_names_everything(grlu):
    done = grlu("list")
    assert (done.returncode, done.stderr) == (0, "")
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    tables = [configs.names(), models.MODELS, trainers.TRAINERS, trainers.OBJECTIVES]
    tables.append(input_pipeline.DATASETS)
    assert listed >= {name for table in tables for name in table}
    assert listed >= {"grlu.NodePerturbation", "grlu.Backprop"}


def test_train_prints_a_table_and_the_run(trained):
    cwd, done = trained
    name = done.stdout.splitlines()[-1].removeprefix("run: ")
    assert re.fullmatch(r"runs/digits_grlu-\d{8}-\d{6}", name)
    assert (cwd / name / "config.json").is_file()
    for cell in ("train", "validation", "test", "accuracy", "reward"):
        assert cell in done.stdout
    assert "157/157" in done.stderr  # the bar: 1,257 examples in batches of 8


def test_evaluate_prints_one_json_object(grlu, run_copy):
    done = grlu("evaluate", run_copy, "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert 0 <= values["test_accuracy"] <= 1
    assert (values["run"], values["step"]) == (str(run_copy), 157)
    tested = (run_copy / "metrics.csv").read_text().splitlines()[-1]
    assert str(values["test_accuracy"]) in tested.split(",")


def test_report_prints_its_page(grlu, run_copy):
    done = grlu("report", run_copy)
    assert (done.returncode, done.stdout) == (0, f"{run_copy / 'report' / 'index.html'}\n")
    assert (run_copy / "report" / "confusion.png").is_file()


@pytest.mark.slow
def test_a_pipeline_trains_resumes_and_shows_forgetting(grlu, tmp_path):
    head = {"epochs": 1, "name": "grlu", "samples": 2, "learning_rate": 0.01}
    stages = [
        {
            "name": "slow",
            "model": {"name": "mlp", "hidden": [16]},
            "trainer": {"name": "evolution", "epochs": 0},
        },
        {
            "name": "one",
            "dataset": {"classes": [0, 1]},
            "model": {"name": "mlp", "hidden": []},
            "trainer": head,
        },
        {"name": "two", "start": "one", "dataset": {"classes": [2, 3]}},
    ]
    dataset = {"name": "digits", "renumber": True, "subset": 400}
    config = {"dataset": dataset, "stages": stages}
    (tmp_path / "tasks.json").write_text(json.dumps(config))
    change = "stages.one.trainer.samples=4"
    done = grlu("train", tmp_path / "tasks.json", change, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "stage two (3 of 3)" in done.stderr
    assert done.stdout.splitlines()[-1] == f"run: {tmp_path / 'run'}"
    again = grlu("resume", tmp_path / "run")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    shown = grlu("evaluate", tmp_path / "run")
    assert shown.returncode == 0, shown.stderr
    assert "forgetting" in shown.stdout
    values = trainers.evaluate(tmp_path / "run")
    assert values["continual"]["tasks"] == ["one", "two"]
    assert values["test_accuracy"] == values["continual"]["accuracy"][1][1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits_gru"], "no config 'digits_gru'.*did you mean 'digits_grlu'"),
        (["digits_grlu", "trainer.sampels=3"], "trainer has no key 'sampels'.*'samples'"),
        (["digits_grlu", "model.name=mpl"], "no model 'mpl'.*'mlp'"),
        (["mnist_grlu"], "mnist.* is not in .*empty: run `grlu data prepare mnist`"),
    ],
)
def test_a_mistake_is_one_sentence(grlu, tmp_path, arguments, said):
    assert re.search(said, sentence(grlu("train", *arguments, cwd=tmp_path), 2))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.json", b'{"model":\n', r"cut\.json, line 2: not valid JSON"),
        ("binary.yaml", b"\xff\xfe\x00", r"binary\.yaml can't be read: it is not text"),
        ("missing.json", None, r"missing\.json can't be read: No such file"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(grlu, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert re.search(said, sentence(grlu("train", tmp_path / name, cwd=tmp_path), 2))


def test_dropped_keys_are_logged_once(grlu, tmp_path):
    change = ["trainer.name=backprop", "dataset.data_dir=nowhere"]
    done = grlu("train", "mnist_grlu", *change, "--run", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.count("dropped") == 1, done.stderr


def test_a_folder_with_a_run_is_refused_and_left_alone(grlu, run_copy):
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    said = sentence(grlu("train", *SMALL, "--run", run_copy), 2)
    assert "already holds a run" in said
    assert "--overwrite" in said
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_without_a_run_is_refused(grlu, tmp_path):
    assert "holds no run" in sentence(grlu("evaluate", tmp_path, "--json"), 2)


def test_a_report_without_a_run_writes_nothing(grlu, run_copy, tmp_path):
    assert "there is no folder absent" in sentence(grlu("report", "absent", cwd=tmp_path), 2)
    assert "holds no run" in sentence(grlu("report", run_copy, tmp_path), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_preparing_from_a_folder_without_the_files_names_the_first(grlu, tmp_path):
    done = grlu("data", "prepare", "mnist", "--from", tmp_path, "--data-dir", tmp_path / "data")
    assert "train-images-idx3-ubyte.gz is missing" in sentence(done, 2)
    assert not (tmp_path / "data").exists()


def test_preparing_prints_the_folder(grlu, tmp_path):
    for split, count in (("train", 30), ("t10k", 20)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            header = struct.pack(f">{1 + len(shape)}i", 0x800 + len(shape), *shape)
            content = gzip.compress(header + bytes(math.prod(shape)))
            (tmp_path / f"{split}-{kind}-ubyte.gz").write_bytes(content)
    said = []
    for _ in range(2):
        done = grlu("data", "prepare", "mnist", "--from", tmp_path, "--data-dir", tmp_path)
        assert done.returncode == 0, done.stderr
        said += done.stdout.splitlines()
    folder = next((tmp_path / "mnist").iterdir())
    assert said == [f"prepared: {folder}", f"already there: {folder}"]


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["train", "x", "--rnu", "y"]])
def test_an_unknown_command_exits_with_2(arguments):
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "100"})
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert "--help" in done.stderr


def test_a_broken_run_exits_with_1(grlu, tmp_path):
    breaking = ["trainer.optimizer=sgd", "trainer.learning_rate=1e38", "trainer.schedule=constant"]
    done = grlu("train", *SMALL, *breaking, "--run", tmp_path / "run", "--quiet")
    assert re.search(r"not finite appeared at step \d+", sentence(done, 1))


@pytest.mark.slow
def test_a_full_disk_keeps_saved_checkpoints(grlu, run_copy):
    """Files are limited to 8 kB: the small files of the run fit, its kernel does not."""
    config = json.loads((run_copy / "config.json").read_text())
    config["trainer"]["epochs"] = 2
    (run_copy / "config.json").write_text(json.dumps(config))
    full = """
import resource
from grlu.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
main()
"""
    done = grlu(
        "resume", run_copy, "--quiet", program=["-c", full], JAX_ENABLE_COMPILATION_CACHE="false"
    )
    assert done.returncode == 2, done.stderr
    # Orbax's threads print tracebacks before and after.
    said = re.search("^error: the checkpoint of step 314 .* disk full", done.stderr, re.MULTILINE)
    assert said, done.stderr
    assert trainers.evaluate(run_copy)["step"] == 157


@pytest.mark.slow
def test_sample_prints_text(grlu, tmp_path):
    sizes = ["dataset.length=16", "dataset.stride=8", "model.layers=1", "model.width=16"]
    sizes.append("trainer.epochs=1")
    trainers.train("sonnets_lm", tmp_path / "run", overrides=sizes, progress=False)
    done = grlu("sample", tmp_path / "run", "--prompt", "Shall I", "--tokens", "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Shall I")
    assert len(done.stdout) == len("Shall I") + 20 + 1
    with pytest.raises(UserError, match="the character '@' at position 3 of the text is not in"):
        trainers.generate(tmp_path / "run", "So @")
    assert write_report([tmp_path / "run"]).is_file()
