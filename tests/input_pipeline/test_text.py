"""Text: rows, split by position, and sources."""

import numpy as np
import pytest

import grlu
import input_pipeline

TEXT = "".join(chr(97 + i * i % 26) for i in range(1000))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(TEXT)
    return path


def read(data, split):
    """Return a split's text, joined from consecutive rows."""
    rows = getattr(data, split)["tokens"]
    return data.tokenizer.decode([*rows[:, :-1].reshape(-1), rows[-1, -1]])


def test_a_text_is_split_by_position(file):
    data = input_pipeline.load(f"text:{file}", length=10, validation=0.1, test=0.2)
    assert TEXT[:700].startswith(read(data, "train"))
    assert TEXT[700:800].startswith(read(data, "validation"))
    assert TEXT[800:].startswith(read(data, "test"))
    assert data.train["tokens"].shape == (69, 11)  # The last row would lack its next token.
    assert data.examples == 69
    assert data.example_shape == (10,)
    assert data.num_classes == len(set(TEXT))


def test_examples_overlap_by_the_stride_only_in_training(file):
    data = input_pipeline.load(f"text:{file}", length=10, stride=3)
    rows = data.train["tokens"]
    np.testing.assert_array_equal(rows[0, 3:], rows[1, :-3])
    assert len(rows) == (900 - 11) // 3 + 1
    assert data.validation["tokens"].shape == (4, 11)


def test_a_batch_is_int32_and_scored_throughout():
    data = input_pipeline.load("sonnets")
    assert data.train["tokens"].dtype == np.uint8
    batch = data.preprocess({"tokens": data.train["tokens"][:4]})
    assert batch["tokens"].dtype == np.int32
    assert batch["scored"].shape == (4, 32)
    assert batch["scored"].all()
    assert data.tokenizer.decode(batch["tokens"][0]).startswith("Shall I compare thee")


def test_bytes_are_tokens_of_any_text(tmp_path):
    (tmp_path / "mine.txt").write_text("naïve " * 50, encoding="utf-8")
    data = input_pipeline.load(f"text:{tmp_path}/mine.txt", length=8, tokenizer="byte")
    assert data.num_classes == 256
    assert read(data, "train").startswith("naïve naïve")


def test_no_validation(file):
    assert input_pipeline.load(f"text:{file}", length=10, validation=0).validation is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"length": 0}, "dataset.length must be a number of tokens of at least 1"),
        ({"stride": 0}, "dataset.stride must be a number of tokens"),
        ({"length": 100}, "the validation split has 50 tokens, too few"),
        ({"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"validation": 2}, r"dataset.validation must be a fraction of the text in \[0, 1\)"),
        ({"test": 0}, "dataset.test must leave some text"),
        ({"tokenizer": "words"}, "dataset.tokenizer must be one of char, byte, gpt2"),
        ({"tokenizer": "gpt2"}, "vocab.bpe is missing: set dataset.bpe to the folder"),
    ],
)
def test_wrong_options_are_refused(options, sentence, file, tmp_path):
    with pytest.raises(grlu.UserError, match=sentence):
        input_pipeline.load(f"text:{file}", data_dir=str(tmp_path), **{"length": 10} | options)


def test_missing_empty_or_binary_file_is_refused(tmp_path):
    with pytest.raises(grlu.UserError, match=r"none.txt can't be read: No such file"):
        input_pipeline.load(f"text:{tmp_path}/none.txt")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(grlu.UserError, match="is empty"):
        input_pipeline.load(f"text:{tmp_path}/empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(grlu.UserError, match="is not a text in UTF-8"):
        input_pipeline.load(f"text:{tmp_path}/binary.txt")


def test_shakespeare_is_prepared_from_a_folder_and_found(tmp_path):
    root, source = tmp_path / "sets", tmp_path / "source"
    source.mkdir()
    with pytest.raises(grlu.UserError, match="run `grlu data prepare shakespeare`"):
        input_pipeline.load("shakespeare", data_dir=str(root))
    with pytest.raises(grlu.UserError, match=r"tinyshakespeare.txt can't be read"):
        input_pipeline.prepare("shakespeare", source, root)
    (source / "tinyshakespeare.txt").write_text(TEXT)
    assert input_pipeline.prepare("shakespeare", source, root) == (root, True)
    assert input_pipeline.prepare("shakespeare", source, root) == (root, False)
    data = input_pipeline.load("shakespeare", data_dir=str(root), length=10)
    assert read(data, "train") == TEXT[:891]
