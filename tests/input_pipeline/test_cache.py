import logging
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.storage.cache import cache_dir, cached

ARRAYS = {"image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "label": np.array([3, 1])}


class Build:
    """Builder that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


@pytest.fixture
def build():
    return Build()


@pytest.fixture
def stored(build, tmp_path):
    """Return the file of an existing cache entry."""
    cached("set", "print", build)
    build.calls = 0
    return tmp_path / "cache" / "datasets" / "set.cache"


def assert_right(arrays):
    assert arrays.keys() == ARRAYS.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[key])
        assert array.dtype == ARRAYS[key].dtype


def test_second_call_reads_the_cache(build, stored):
    assert_right(cached("set", "print", build))
    assert build.calls == 0
    assert [path.name for path in stored.parent.iterdir()] == ["set.cache"]


def test_truncated_file_is_rebuilt(build, stored):
    whole = stored.read_bytes()
    for length in range(len(whole)):
        stored.write_bytes(whole[:length])
        assert_right(cached("set", "print", build))
        assert build.calls == length + 1
        assert stored.read_bytes() == whole


def test_file_with_any_damaged_byte_is_rebuilt(build, stored):
    whole = stored.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        stored.write_bytes(damaged)
        assert_right(cached("set", "print", build))
        assert build.calls == position + 1


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, bytes(32)])
def test_foreign_file_under_the_name_is_rebuilt(build, stored, content, caplog):
    stored.write_bytes(content)
    assert_right(cached("set", "print", build))
    assert build.calls == 1
    assert "decoding again" in caplog.text


def test_arrays_of_another_source_are_rebuilt(build, stored):
    other = {"image": np.zeros(3), "label": np.zeros(3)}
    cached("set", "other", lambda: other)
    assert_right(cached("set", "print", build))
    assert build.calls == 1


def test_folder_at_the_files_path_disables_the_cache(build, stored):
    stored.unlink()
    stored.mkdir()
    assert_right(cached("set", "print", build))
    assert build.calls == 1


def test_uncreatable_folder_means_no_cache_and_one_warning(build, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRLU_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        for key in ("train", "test", "train"):
            assert_right(cached(key, "print", build))
    assert build.calls == 3
    assert len(caplog.records) == 1
    assert "set GRLU_CACHE to another folder" in caplog.text


def test_full_disk_means_no_cache_and_no_leftovers(tmp_path):
    code = """
import resource, numpy as np
from input_pipeline.storage.cache import cached
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
arrays = cached("set", "print", lambda: {"image": np.ones(200_000, np.uint8)})
assert len(arrays["image"]) == 200_000
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be stored" in done.stderr
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_concurrent_writers_never_see_an_incomplete_file(tmp_path):
    """Check that no process warns about an incomplete file."""
    code = """
import numpy as np
from input_pipeline.storage.cache import cached
for i in range(100):
    image = cached(f"set{i}", "print", lambda: {"image": np.full(200_000, i)})["image"]
    assert (image == i).all() and len(image) == 200_000
"""
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [(process.communicate()[1], process.returncode) for process in running]
    assert ended == [("", 0)] * 3
    names = {path.name for path in (tmp_path / "cache" / "datasets").iterdir()}
    assert names == {f"set{i}.cache" for i in range(100)}


def test_cache_folder_by_precedence(tmp_path, monkeypatch):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("GRLU_CACHE")
    assert cache_dir() == tmp_path / "home" / ".cache" / "grlu"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "grlu"
