import gzip
import os
import subprocess
import sys

import numpy as np
import pytest

from grlu.errors import UserError
from input_pipeline import load, prepare

RNG = np.random.default_rng(3)


def test_real_mnist(mnist):
    data = mnist()
    assert data.train["image"].shape == (55_000, 28, 28, 1)
    assert data.validation["image"].shape == (5_000, 28, 28, 1)
    assert data.test["image"].shape == (10_000, 28, 28, 1)
    assert data.train["image"].dtype == np.uint8
    assert data.train["label"].dtype == np.int32
    assert (data.name, data.num_classes, data.example_shape) == ("mnist", 10, (784,))
    assert data.test["label"][:10].tolist() == [2, 0, 4, 8, 7, 6, 0, 6, 3, 1]


def test_real_mnist_on_all_60000(mnist):
    data = mnist(validation=0)
    assert data.validation is None
    assert data.train["label"][:10].tolist() == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]
    assert np.bincount(data.train["label"]).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]


def test_real_mnist_by_published_moments(mnist):
    data = mnist(validation=0)
    image = np.asarray(data.preprocess({"image": data.train["image"][:20_000]})["image"])
    assert image.shape == (20_000, 784)
    assert abs(image.mean()) < 0.01
    assert abs(image.std() - 1) < 0.01


def test_real_mnist_is_read_from_the_cache_the_second_time(mnist, mnist_cache):
    first = mnist()
    before = {path.name: path.stat().st_mtime_ns for path in mnist_cache.rglob("*.cache")}
    assert before.keys() == {"mnist-3.0.1-train.cache", "mnist-3.0.1-test.cache"}
    second = mnist()
    assert {path.name: path.stat().st_mtime_ns for path in mnist_cache.rglob("*.cache")} == before
    np.testing.assert_array_equal(first.validation["image"], second.validation["image"])


def test_reading_does_not_import_tensorflow(data_dir, tmp_path):
    """Check with a fake TensorFlow that ends the process on import."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("import os; os._exit(7)")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import input_pipeline
data = input_pipeline.load("mnist", data_dir={str(data_dir)!r}, validation=0)
data.preprocess(data.train)
assert "tensorflow_datasets" in sys.modules
import importlib.util
assert importlib.util.find_spec("tensorflow") is not None
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""


def test_a_cached_set_needs_no_tfds_either(data_dir):
    load("mnist", data_dir=str(data_dir), validation=0)
    code = f"""
import sys, input_pipeline
input_pipeline.load("mnist", data_dir={str(data_dir)!r}, validation=0)
assert "tensorflow_datasets" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_read_only_folder_is_supported(data_dir):
    paths = [data_dir, *data_dir.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in paths}
    try:
        assert len(load("mnist", data_dir=str(data_dir), validation=0).train["label"]) == 50
        assert {
            path: path.stat().st_mtime_ns for path in [data_dir, *data_dir.rglob("*")]
        } == before
    finally:
        for path in paths:
            path.chmod(0o755)


def test_without_a_cache_folder(data_dir, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRLU_CACHE", str(tmp_path / "file"))
    assert len(load("mnist", data_dir=str(data_dir), validation=0).train["label"]) == 50


def test_set_prepared_again_is_not_read_from_the_old_cache(data_dir, tmp_path, make_idx):
    """Change only the labels, so that the files have the same names and sizes."""
    first = load("mnist", data_dir=str(data_dir), validation=0)
    make_idx(tmp_path / "idx")
    labels = tmp_path / "idx" / "train-labels-idx1-ubyte.gz"
    content = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(content[:8] + content[8:][::-1]))
    prepare("mnist", tmp_path / "idx", tmp_path / "other")
    second = load("mnist", data_dir=str(tmp_path / "other"), validation=0)
    sizes = [
        sorted(path.stat().st_size for path in folder.rglob("*.array_record-*"))
        for folder in (data_dir, tmp_path / "other")
    ]
    assert sizes[0] == sizes[1]
    np.testing.assert_array_equal(first.train["image"], second.train["image"])
    assert (first.train["label"] != second.train["label"]).any()


def test_data_folder_by_precedence(data_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert load("mnist", validation=0).name == "mnist"
    with pytest.raises(UserError, match=r"is not in .*elsewhere"):
        load("mnist", data_dir=str(tmp_path / "elsewhere"))
    monkeypatch.delenv("TFDS_DATA_DIR")
    with pytest.raises(UserError, match="home/tensorflow_datasets"):
        load("mnist")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "tensorflow_datasets").symlink_to(data_dir)
    assert load("mnist", validation=0).name == "mnist"
    assert load("mnist", validation=0, data_dir="~/tensorflow_datasets").name == "mnist"


def test_missing_data_name_the_command(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"run `TFDS_DATA_DIR=.*here grlu data prepare mnist`"):
        load("mnist", data_dir=str(tmp_path / "here"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
    with pytest.raises(UserError, match="run `grlu data prepare mnist`"):
        load("mnist")
    with pytest.raises(UserError, match="run `grlu data prepare tfds:cifar100`"):
        load("tfds:cifar100")


def test_a_set_that_tfds_does_not_know(tmp_path):
    with pytest.raises(UserError, match=r"no data set 'cifar_100' in .* nearest is 'cifar100'"):
        load("tfds:cifar_100", data_dir=str(tmp_path))


def test_a_set_in_another_format(data_dir):
    for path in data_dir.rglob("*.array_record-*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"stored in another format .* grlu data prepare mnist"):
        load("mnist", data_dir=str(data_dir))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = os.urandom(len(content) - len(content) // 2)
    path.write_bytes(content)


@pytest.mark.parametrize("break_it", [cut, damage, lambda path: path.unlink()])
@pytest.mark.parametrize(
    "name",
    ["mnist-test.array_record-00000-of-00001", "features.json", "dataset_info.json"],
)
def test_damaged_files(name, break_it, data_dir):
    (file,) = data_dir.rglob(name)
    break_it(file)
    with pytest.raises(UserError, match="grlu data prepare mnist`"):
        load("mnist", data_dir=str(data_dir), validation=0)


def photographs(png, count, shape=(6, 5, 3)):
    return [
        {"picture": png(RNG.integers(0, 256, shape, np.uint8)), "kind": i % 3, "id": str(i)}
        for i in range(count)
    ]


@pytest.fixture
def features():
    from tensorflow_datasets import features

    return {
        "picture": features.Image(shape=(6, 5, 3)),
        "kind": features.ClassLabel(num_classes=3),
        "id": features.Text(),
    }


def test_any_tfds_image_set_loads(tmp_path, write_set, png, features):
    train, test = photographs(png, 30), photographs(png, 9)
    write_set(tmp_path, "photos", features, {"train": train, "test": test})
    data = load("tfds:photos", data_dir=str(tmp_path), flatten=False)
    assert data.train["image"].shape == (27, 6, 5, 3)
    assert data.validation["image"].shape == (3, 6, 5, 3)
    assert (data.name, data.num_classes, data.example_shape) == ("tfds:photos", 3, (6, 5, 3))
    everything = np.concatenate([data.train["image"], data.validation["image"]])
    scaled = np.asarray(data.preprocess({"image": everything})["image"], np.float64)
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), 0, atol=1e-5)


def test_parts_of_a_split(tmp_path, write_set, png, features):
    write_set(tmp_path, "photos", features, {"train": photographs(png, 30)})
    options = {"data_dir": str(tmp_path), "validation": 0}
    with pytest.raises(UserError, match="has no split 'test' with images: it has train"):
        load("tfds:photos", **options)
    both = {"train_split": "train[:80%]", "test_split": "train[80%:]"}
    data = load("tfds:photos", **options, **both)
    assert len(data.train["label"]) == 24
    assert len(data.test["label"]) == 6
    parts = np.concatenate([data.train["image"], data.test["image"]])
    whole = load("tfds:photos", **options, test_split="train").test["image"]
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("split", ["", "train[", "train[:200%]", "train[:0]", "train[5:3]", 3])
def test_unknown_split_is_refused(split, data_dir):
    with pytest.raises(UserError, match="split"):
        load("mnist", data_dir=str(data_dir), train_split=split)


def test_the_newest_version_and_a_pinned_one(tmp_path, write_set, png, features):
    for version, count in (("1.9.0", 12), ("1.10.0", 15)):
        splits = {"train": photographs(png, count), "test": photographs(png, 3)}
        write_set(tmp_path, "photos", features, splits, version=version)
    options = {"data_dir": str(tmp_path), "validation": 0}
    assert len(load("tfds:photos", **options).train["label"]) == 15
    assert len(load("tfds:photos:1.9.0", **options).train["label"]) == 12


def test_configurations(tmp_path, write_set, png, features):
    splits = {"train": photographs(png, 12), "test": photographs(png, 3)}
    write_set(tmp_path, "photos", features, splits, config="small")
    options = {"data_dir": str(tmp_path), "validation": 0}
    assert len(load("tfds:photos", **options).train["label"]) == 12
    splits = {"train": photographs(png, 15), "test": photographs(png, 3)}
    write_set(tmp_path, "photos", features, splits, config="large")
    with pytest.raises(UserError, match="name one of photos/large, photos/small"):
        load("tfds:photos", **options)
    assert len(load("tfds:photos/large", **options).train["label"]) == 15
    assert len(load("tfds:photos/small", **options).train["label"]) == 12


def test_images_of_many_sizes(tmp_path, write_set, png, features):
    from tensorflow_datasets.core.features import Image

    splits = {"train": photographs(png, 3)}
    write_set(tmp_path, "photos", features | {"picture": Image()}, splits)
    with pytest.raises(
        UserError, match=r"shape \(None, None, 3\) .* only images of one fixed size"
    ):
        load("tfds:photos", data_dir=str(tmp_path))


def test_an_image_of_another_size_than_announced(tmp_path, write_set, png, features):
    splits = {"train": photographs(png, 3, (5, 6, 3))}
    write_set(tmp_path, "photos", features, splits)
    with pytest.raises(UserError, match=r"expected an image of shape \(6, 5, 3\), got \(5, 6, 3\)"):
        load("tfds:photos", data_dir=str(tmp_path))


def test_unlabelled_images(tmp_path, write_set, png, features):
    splits = {"train": [example | {"kind": -1} for example in photographs(png, 3)]}
    write_set(tmp_path, "photos", features, splits)
    with pytest.raises(UserError, match="labels from -1 to -1"):
        load("tfds:photos", data_dir=str(tmp_path))


def test_a_set_without_images(tmp_path, write_set, features):
    examples = [{"kind": 1, "id": "x"}]
    del features["picture"]
    write_set(tmp_path, "words", features, {"train": examples})
    with pytest.raises(UserError, match=r"not a set of images with one label each: .* id, kind"):
        load("tfds:words", data_dir=str(tmp_path))


@pytest.mark.parametrize("data_dir", [3, True, ["folder"]])
def test_a_folder_of_the_wrong_type(data_dir):
    with pytest.raises(UserError, match=r"dataset\.data_dir must be the path of a folder"):
        load("mnist", data_dir=data_dir)
