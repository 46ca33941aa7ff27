"""Faults provoked for real: truncated files, killed processes, a full disk."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints import Checkpoints
from grlu.errors import UserError

ROOT = Path(__file__).parents[2]


def make_state(step: int, width: int = 300) -> dict:
    return {
        # By NumPy: XLA's bits depend on the flags, and processes must agree.
        "w": jnp.asarray(np.random.default_rng(step).standard_normal((width, 100), np.float32)),
        "count": jnp.arange(step, step + 3),
        "key": jax.random.key(step),
    }


LIKE = make_state(0)


def fill(directory: Path, *steps: int) -> None:
    with Checkpoints(directory, keep_last=5) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), metrics={"loss": step}, meta={"step": step})


def is_state(restored, step: int) -> bool:
    expected = make_state(step)
    return restored.step == step == restored.meta["step"] and all(
        bool((restored.state[name] == expected[name]).all()) for name in expected
    )


def cut(path: Path, how: str) -> None:
    if how == "delete":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if how == "halve" else 0)


def run(code: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


@pytest.mark.parametrize("how", ["delete", "halve", "empty"])
def test_any_damaged_file_falls_back_to_the_preceding_checkpoint(tmp_path, caplog, how):
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    fill(whole, 1, 2)
    fell_back = set()
    for path in sorted((whole / "2").rglob("*")):
        if path.is_dir():
            continue
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        relative = path.relative_to(whole)
        cut(damaged / relative, how)
        caplog.clear()
        with Checkpoints(damaged, better=("loss", "min")) as checkpoints:
            restored = checkpoints.restore(LIKE)
        if restored.step == 2:  # a file that nothing reads
            assert is_state(restored, 2), relative
        else:
            assert is_state(restored, 1), relative
            assert "step 2 is damaged" in caplog.text
            assert len(caplog.text) < 600  # a sentence, not a dump
            fell_back.add(relative.name)
    largest = max((whole / "2").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    assert fell_back >= {largest.name, "manifest.ocdbt", "metadata"}


def test_unfinished_folder_is_skipped_and_reported(tmp_path, caplog):
    fill(tmp_path, 1, 2)
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == (1,)
        assert is_state(checkpoints.restore(LIKE), 1)
        assert "step 2 was not finished" in caplog.text
        checkpoints.save(2, make_state(2), metrics={}, meta={"step": 2})
        checkpoints.wait()
        assert is_state(checkpoints.restore(LIKE), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_damaged_checkpoints_fall_back_to_the_next(tmp_path):
    fill(tmp_path, 1, 2, 3)
    for path in tmp_path.glob("3/state/d/*"):
        cut(path, "halve")
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        assert checkpoints.restore(LIKE).step == 2
        checkpoints.save(3, make_state(3), metrics={}, meta={"step": 3})
    with Checkpoints(tmp_path) as checkpoints:
        assert is_state(checkpoints.restore(LIKE), 3)
        assert checkpoints.steps == (2, 3)


def test_damaged_best_falls_back_to_the_next_best(tmp_path):
    fill(tmp_path, 1, 2, 3)
    cut(next(tmp_path.glob("1/state/d/*")), "delete")
    with Checkpoints(tmp_path, better=("loss", "min")) as checkpoints:
        assert checkpoints.best_step == 1
        assert checkpoints.restore(LIKE, best=True).step == 2


def test_unreadable_checkpoints_are_refused(tmp_path):
    fill(tmp_path, 1, 2)
    for path in tmp_path.glob("*/state/manifest.ocdbt"):
        cut(path, "empty")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no readable"):
        checkpoints.restore(LIKE)


def test_missing_checkpoints_are_refused(tmp_path):
    with (
        Checkpoints(tmp_path / "new") as checkpoints,
        pytest.raises(UserError, match="none was saved"),
    ):
        checkpoints.restore(LIKE)
    fill(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="of step 4"):
        checkpoints.restore(LIKE, 4)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            make_state(0, width=200),
            r"\['w'\] is float32 of shape \(300, 100\) in the checkpoint "
            r"and float32 of shape \(200, 100\)",
        ),
        ({**LIKE, "count": jnp.zeros(3)}, r"\['count'\] is int32 of shape \(3,\).* and float32"),
        ({**LIKE, "key": jax.random.key(0, impl="rbg")}, r"\['key'\] is key<fry>"),
        ({**LIKE, "z": jnp.zeros(3)}, r"\['z'\], of shape \(3,\), is missing in the checkpoint"),
        ({"w": LIKE["w"]}, r"\['count'\], of shape \(3,\), is in the checkpoint but not in the"),
    ],
)
def test_structure_mismatch_is_not_damage(tmp_path, caplog, like, message):
    fill(tmp_path, 1, 2)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="config and checkpoint don't match: " + message):
            checkpoints.restore(like)
        assert is_state(checkpoints.restore(LIKE), 2)
    assert not caplog.records


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="can't be used"):
            Checkpoints(path)


def test_vanished_directory_fails_the_save(tmp_path):
    """Replace the directory by a file, which fails for every user, even root."""
    checkpoints = Checkpoints(tmp_path / "run")
    (tmp_path / "run").rmdir()
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(UserError, match="couldn't be saved"):
        checkpoints.save(1, LIKE, metrics={}, meta={})
    (tmp_path / "run").unlink()
    checkpoints.close()


def test_no_write_permission(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    fill(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        with Checkpoints(tmp_path) as checkpoints:
            assert is_state(checkpoints.restore(LIKE), 1)
            with pytest.raises(UserError, match="couldn't be saved"):
                checkpoints.save(2, LIKE, metrics={}, meta={})
    finally:
        tmp_path.chmod(0o700)


FULL = """
import resource, sys
sys.path.insert(0, "tests/checkpoints")
from test_faults import LIKE, Checkpoints, UserError, fill, is_state, make_state
directory, limit = sys.argv[1], int(sys.argv[2])
fill(directory, 1)
checkpoints = Checkpoints(directory)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, make_state(2), metrics={}, meta={"step": 2})
    checkpoints.wait()
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert is_state(checkpoints.restore(LIKE), 1)
checkpoints.save(2, make_state(2), metrics={}, meta={"step": 2})
checkpoints.close()
with Checkpoints(directory) as checkpoints:
    assert checkpoints.steps == (1, 2)
    assert is_state(checkpoints.restore(LIKE), 2)
"""


@pytest.mark.parametrize("limit", [50_000, 10])
def test_full_disk_fails_the_save(tmp_path, limit):
    """Limit the file size, which makes every larger write fail, even for root."""
    done = run(FULL, tmp_path, limit)
    assert done.returncode == 0, done.stderr
    assert "step 2 couldn't be saved" in done.stdout
    assert "File too large" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_state_larger_than_free_space_is_refused(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    huge = np.broadcast_to(np.zeros((), np.int8), (2 * free,))  # not backed by memory
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="bytes are needed"):
            checkpoints.save(1, {"x": huge}, metrics={}, meta={})
        assert checkpoints.steps == ()


KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, "tests/checkpoints")
from test_faults import Checkpoints, fill, make_state
directory, sign = sys.argv[1:]
fill(directory, 1)
state = make_state(2, width=100_000)
checkpoints = Checkpoints(directory)
checkpoints.save(2, state, metrics={}, meta={"step": 2})
while not any(pathlib.Path(directory).glob(sign)):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("sign", ["2.*", "2.*/info*/*", "2.*/state*/**/d/*"])
def test_kill_while_saving_keeps_older_checkpoints(tmp_path, sign):
    """Kill immediately, and after some files are written."""
    assert run(KILLED, tmp_path, sign).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("2*")] == ["2.orbax-checkpoint-tmp"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == (1,)
        assert is_state(checkpoints.restore(LIKE), 1)


def test_orbax_is_silent(tmp_path):
    done = run(
        "import sys; sys.path.insert(0, 'tests/checkpoints')\n"
        "import test_faults; test_faults.fill(sys.argv[1], 1, 2)",
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_absl_messages_are_kept(caplog):
    logging.getLogger("absl").warning("not Orbax")
    assert "not Orbax" in caplog.text
