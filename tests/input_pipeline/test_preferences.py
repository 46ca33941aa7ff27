"""Recorded preference pairs: reading, and errors for invalid lines."""

import json

import numpy as np
import pytest

import input_pipeline
from grlu.errors import UserError

PAIR = {"prompt": "ab", "chosen": "c", "rejected": "ba."}


def written(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return f"preferences:{path}"


def test_pairs_become_rows_of_tokens_and_masks(tmp_path):
    other = {"prompt": "b", "chosen": "aa", "rejected": "c"}
    name = written(tmp_path / "pairs.jsonl", PAIR, "", other, PAIR, PAIR)
    data = input_pipeline.load(name, validation=1, test=1)
    assert data.pairs
    assert (data.examples, data.num_classes, data.example_shape) == (2, 4, (5,))
    splits = (data.train, data.validation, data.test)
    assert sum(len(split["given"]) for split in splits) == 4
    rows = [
        tuple(data.tokenizer.decode(row[mask > 0]) for row, mask in zip(tokens, masks, strict=True))
        for split in splits
        for batch in [data.preprocess(split)]
        for tokens, masks in zip(
            zip(batch["chosen"], batch["rejected"], strict=True),
            zip(batch["chosen_mask"], batch["rejected_mask"], strict=True),
            strict=True,
        )
    ]
    assert sorted(rows) == [("aa", "c")] + 3 * [("c", "ba.")]
    whole = data.tokenizer.decode(np.concatenate([s["chosen"] for s in splits]).reshape(-1))
    assert "abc" in whole
    assert "baa" in whole


def test_pairs_use_the_tokenizer_of_a_text(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abc.xyz" * 1000)
    name = written(tmp_path / "pairs.jsonl", *4 * [PAIR])
    read = input_pipeline.load(f"text:{text}", length=8)
    data = input_pipeline.load(name, like=f"text:{text}", length=8, validation=1, test=1)
    assert data.tokenizer.vocabulary == read.tokenizer.vocabulary
    assert data.example_shape == (8,)
    assert input_pipeline.load(name, tokenizer="byte", validation=1, test=1).num_classes == 256


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([PAIR, "{"], {}, "line 2: not valid JSON"),
        ([PAIR, "3"], {}, "line 2: must be an object with prompt, chosen, rejected, not 3"),
        ([PAIR, {"prompt": "a", "chosen": "b"}], {}, "line 2: 'rejected' must be .*: missing"),
        ([PAIR | {"chosen": 1}], {}, "line 1: 'chosen' must be a text .*: 1"),
        ([PAIR | {"prompt": ""}], {}, "line 1: 'prompt' must be a text of at least one token: ''"),
        (["", PAIR | {"rejected": "c"}], {}, "line 2: chosen and rejected are the same"),
        ([""], {}, "holds no preferences"),
        ([PAIR], {"length": 4}, "line 1: .* are 5 tokens, more than dataset.length=4"),
        ([PAIR], {"like": "digits"}, "dataset.like must be a data set of text, and digits is not"),
        ([PAIR | {"chosen": "é"}], {"like": "sonnets"}, "line 1: the character 'é' at position 0"),
        ([PAIR], {"test": 1}, "leaves nothing to train on"),
    ],
)
def test_errors_name_the_line(rows, options, said, tmp_path):
    name = written(tmp_path / "pairs.jsonl", *rows)
    with pytest.raises(UserError, match=said):
        input_pipeline.load(name, **options)


def test_a_file_that_is_missing():
    with pytest.raises(UserError, match=r"nowhere.jsonl can't be read"):
        input_pipeline.load("preferences:nowhere.jsonl")
