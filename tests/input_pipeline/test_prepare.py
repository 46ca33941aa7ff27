import functools
import http.server
import importlib.util
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from grlu.errors import UserError
from input_pipeline import load, prepare
from input_pipeline.storage.prepared import find


def in_tfds_order(split, arrays):
    """Sort like TFDS: by the hash of an example's number, salted with the split's name."""
    from tensorflow_datasets.core.hashing import Hasher

    order = sorted(range(len(arrays[1])), key=Hasher(split).hash_key)
    return [array[order] for array in arrays]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_idx_files_survive_prepare_and_load(name, tmp_path, make_idx):
    arrays = make_idx(tmp_path / "idx")
    folder, written = prepare(name, tmp_path / "idx", tmp_path / "data")
    assert written
    assert folder.parent == tmp_path / "data" / name
    data = load(name, data_dir=str(tmp_path / "data"), validation=0)
    for split, examples in (("train", data.train), ("test", data.test)):
        images, labels = in_tfds_order(split, arrays[split])
        np.testing.assert_array_equal(examples["image"][..., 0], images)
        np.testing.assert_array_equal(examples["label"], labels)


def test_real_mnist_has_the_order_of_a_local_build(mnist):
    """Check that TFDS's test set in the original order begins like the published files."""
    stored = mnist(validation=0).test["label"]
    _, places = in_tfds_order("test", (np.arange(10_000), np.arange(10_000)))
    published = np.empty_like(stored)
    published[places] = stored
    assert published[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_tfds_itself_reads_what_was_built(data_dir):
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist", data_dir=data_dir)
    assert builder.info.splits["train"].num_examples == 50
    assert builder.info.features["label"].num_classes == 10
    records = builder.as_data_source(split="test")
    data = load("mnist", data_dir=str(data_dir), validation=0)
    np.testing.assert_array_equal([record["image"] for record in records], data.test["image"])
    assert {path.name for path in (data_dir / "mnist").rglob("*")} == {
        "3.0.1",
        "dataset_info.json",
        "features.json",
        "mnist-train.array_record-00000-of-00001",
        "mnist-test.array_record-00000-of-00001",
    }
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]


def test_existing_set_is_not_written_again(data_dir, idx):
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    folder, written = prepare("mnist", idx, data_dir)
    assert not written
    assert folder == data_dir / "mnist" / "3.0.1"
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_environment_variable_sets_the_folder(tmp_path, idx, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    assert prepare("tfds:mnist", str(idx)).folder == tmp_path / "data" / "mnist" / "3.0.1"
    assert len(load("mnist", validation=0).train["label"]) == 50


@pytest.mark.parametrize(
    "name",
    [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ],
)
@pytest.mark.parametrize("fault", ["missing", "short"])
def test_a_broken_source_is_named_and_nothing_is_written(name, fault, idx, tmp_path):
    file = idx / name
    whole = file.read_bytes()
    file.unlink()
    if fault == "short":
        file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=name):
        prepare("mnist", idx, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_kill_while_writing_leaves_no_set_and_can_be_repeated(tmp_path, make_idx):
    make_idx(tmp_path / "idx", train=20_000)
    arguments = f"'mnist', {str(tmp_path / 'idx')!r}, {str(tmp_path / 'data')!r}"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import input_pipeline; input_pipeline.prepare({arguments})"],
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob("data/mnist/incomplete*")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert find("mnist", tmp_path / "data") is None
    with pytest.raises(UserError, match="grlu data prepare mnist"):
        load("mnist", data_dir=str(tmp_path / "data"))
    make_idx(tmp_path / "idx")
    assert prepare("mnist", tmp_path / "idx", tmp_path / "data").written


def test_concurrent_processes_write_one_set(tmp_path, make_idx):
    make_idx(tmp_path / "idx", train=2000)
    code = f"""
from input_pipeline import prepare
print(prepare("mnist", {str(tmp_path / "idx")!r}, {str(tmp_path / "data")!r}).written)
"""
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    printed = sorted(process.communicate()[0] for process in running)
    assert printed == ["False\n", "True\n"]
    assert [path.name for path in (tmp_path / "data" / "mnist").iterdir()] == ["3.0.1"]


def test_set_written_by_another_process_in_the_meantime_is_kept(tmp_path, idx, monkeypatch):
    def files():
        paths = sorted((tmp_path / "data").rglob("*"))
        return [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]

    prepare("mnist", idx, tmp_path / "data")
    before = files()
    looks = iter([None])
    monkeypatch.setitem(prepare.__globals__, "find", lambda *args: next(looks, find(*args)))
    prepared = prepare("mnist", idx, tmp_path / "data")
    assert prepared == (tmp_path / "data/mnist/3.0.1", False)
    assert files() == before


def test_a_folder_that_cannot_be_written(idx, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"'mnist' cannot be prepared in .*file"):
        prepare("mnist", idx, tmp_path / "file" / "data")


def test_full_disk_leaves_no_set(tmp_path, make_idx):
    make_idx(tmp_path / "idx", train=500)
    code = f"""
import resource
from grlu.errors import UserError
from input_pipeline import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    prepare("mnist", {str(tmp_path / "idx")!r}, {str(tmp_path / "data")!r})
except UserError as error:
    assert "'mnist' cannot be prepared in" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert list((tmp_path / "data" / "mnist").iterdir()) == []


def test_folder_without_a_set_at_its_path_is_refused(idx, tmp_path):
    (tmp_path / "data" / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mnist/3\.0\.1 is not a complete data set: remove it"):
        prepare("mnist", idx, tmp_path / "data")


def test_set_in_another_format_is_kept(data_dir, idx):
    for path in data_dir.rglob("*.array_record-*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="stored in another format than array_record"):
        prepare("mnist", idx, data_dir)


@pytest.fixture
def server(idx, monkeypatch):
    """Serve the IDX files locally, in place of MNIST's own server."""
    from tensorflow_datasets.image_classification.mnist import MNIST

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(idx))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        monkeypatch.setattr(MNIST, "URL", f"http://127.0.0.1:{running.server_port}/")
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield
        running.shutdown()
        thread.join()


def test_download(server, tmp_path, idx):
    assert prepare("mnist", data_dir=tmp_path / "downloaded").written
    prepare("mnist", idx, tmp_path / "local")
    downloaded, local = (
        load("mnist", data_dir=str(tmp_path / folder), validation=0).train
        for folder in ("downloaded", "local")
    )
    np.testing.assert_array_equal(downloaded["image"], local["image"])
    np.testing.assert_array_equal(downloaded["label"], local["label"])


def test_a_download_of_something_else(server, tmp_path, idx):
    (idx / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="is not a complete gzip file"):
        prepare("mnist", data_dir=tmp_path / "data")
    assert find("mnist", tmp_path / "data") is None


def test_a_download_that_fails(server, tmp_path, idx):
    (idx / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match=r"'mnist' cannot be prepared in .*t10k-labels.* --from DIR"
    ):
        prepare("mnist", data_dir=tmp_path / "data")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here."
)
@pytest.mark.parametrize("name", ["cifar10", "tfds:cifar100"])
def test_a_set_that_needs_tensorflow(name, tmp_path):
    with pytest.raises(UserError, match=r"needs TensorFlow .* `pip install grlu\[prepare\]`"):
        prepare(name, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("digits", None, "'digits' needs no files"),
        ("cifar10", "idx", "'cifar10' cannot be built .* only mnist, fashion_mnist, kmnist"),
        ("mnits", None, "knows no data set 'mnits': its nearest is 'mnist'"),
        ("tfds:cifar_100", None, "'cifar_100': its nearest is 'cifar100'"),
        ("mnist/none", None, "cannot prepare 'mnist/none'"),
    ],
)
def test_wrong_names(name, source, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare(name, source, tmp_path)
