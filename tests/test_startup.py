"""Names of configs, the catalogue and the start of a command."""

import os
import pathlib
import subprocess
import sys

import pytest

import configs
import grlu
import input_pipeline
import models
import trainers
from grlu.catalogue import catalogue
from grlu.startup import cache_compilations, require_own_packages


def first_line(thing):
    return (thing.__doc__ or "").strip().split("\n")[0]


def test_the_catalogue_lists_what_can_be_imported():
    found = catalogue()
    assert found["models"] == {n: first_line(m) for n, m in models.MODELS.items()}
    assert found["objectives"] == {n: first_line(o) for n, o in trainers.OBJECTIVES.items()}
    assert found["trainers"].keys() == trainers.TRAINERS.keys()
    assert input_pipeline.DATASETS.keys() <= found["data sets"].keys()
    rules = {
        f"grlu.{name}": first_line(rule)
        for name in grlu.__all__
        if isinstance(rule := getattr(grlu, name), type)
        and issubclass(rule, grlu.Rule)
        and rule is not grlu.Rule
    }
    assert found["rules"] == rules
    assert all(text for section in found.values() for text in section.values())


def test_former_names_of_configs_select_members_of_families():
    for entry in configs.entries().values():
        assert set(entry.aliases.values()) <= set(entry.members)
        for former, member in entry.aliases.items():
            same = trainers.resolve(f"{entry.path.stem}:{member}")
            assert trainers.resolve(former) == same


@pytest.mark.parametrize("name", ["published:8", "mnist_grlu:n=1", "published:"])
def test_a_member_that_does_not_exist_is_refused(name):
    with pytest.raises(grlu.UserError, match=f"no config '{name}'"):
        trainers.resolve(name)


def test_a_folder_that_hides_a_package_is_named(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    script = tmp_path / "mine.py"
    script.write_text("import trainers")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert f"the folder {tmp_path / 'models'} hides the package 'models'" in done.stderr


def test_packages_are_not_hidden_here():
    require_own_packages()


def test_a_remote_cache_folder_makes_no_local_one(monkeypatch):
    monkeypatch.setenv("GRLU_CACHE", "gs://bucket/cache")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    cache_compilations()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_variables_of_the_environment_win_over_the_cache_of_compiled_programs(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("GRLU_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "1")
    cache_compilations()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / "xla"))
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == "1"
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name)


@pytest.mark.parametrize("limit", ["ours", "-1"])
def test_a_program_that_a_killed_process_left_unfinished_is_removed(limit, monkeypatch, tmp_path):
    monkeypatch.setenv("GRLU_CACHE", str(tmp_path))
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")):
            monkeypatch.delenv(name)
    if limit != "ours":  # Without a limit JAX keeps no times.
        monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", limit)
    cache_compilations()
    cache = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    cache.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "unfinished-cache", "new-cache"):
        (cache / name).write_bytes(b"0")
        if name != "new-cache":
            os.utime(cache / name, (0, 0))
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE")):
            monkeypatch.delenv(name)
    cache_compilations()
    left = {path.name for path in cache.iterdir()}
    assert left == {"whole-cache", "whole-atime", "new-cache"} | (
        {"unfinished-cache"} if limit != "ours" else set()
    )
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")):
            monkeypatch.delenv(name)
