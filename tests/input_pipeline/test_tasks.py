"""Generated tasks: correct answers, and splits without common questions."""

import numpy as np
import pytest

import grlu
import input_pipeline
from input_pipeline.text.tasks import TASKS

ANSWERS = {
    "addition": lambda q: str(sum(map(int, q.split("+")))).zfill(3),
    "copy": lambda q: q,
    "parity": lambda q: str(q.count("1") % 2),
    "reverse": lambda q: q[::-1],
    "sort": lambda q: "".join(sorted(q)),
}


def texts(data, split):
    return [data.tokenizer.decode(row) for row in getattr(data, split)["tokens"]]


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_correct_and_splits_are_disjoint(name):
    data = input_pipeline.load(name)
    seen = []
    for split in ("train", "validation", "test"):
        for text in texts(data, split):
            question, answer = text.removeprefix("\n").split("=")
            assert text.startswith("\n")
            assert len(question) + 2 == data.prompt
            assert answer == ANSWERS[name](question)
            seen.append(question)
    assert len(set(seen)) == len(seen) == (256 if name == "parity" else 10_000)
    assert len(data.train["tokens"]) > len(data.test["tokens"]) > 20


def test_only_the_answer_is_scored():
    data = input_pipeline.load("copy", digits=3)
    batch = data.preprocess({"tokens": data.test["tokens"][:2]})
    assert batch["scored"].tolist() == [[0, 0, 0, 0, 1, 1, 1]] * 2


def test_the_test_set_is_the_same_for_every_seed_and_size():
    first = texts(input_pipeline.load("sort"), "test")
    assert first == texts(input_pipeline.load("sort", split_seed=1, subset=100), "test")


def test_longer_questions_are_sampled_from_all_questions():
    data = input_pipeline.load("addition", digits=6, examples=500)
    questions = {text.split("=")[0] for text in texts(data, "train")}
    assert len(questions) == len(data.train["tokens"]) == data.examples
    assert np.mean([int(q.strip()[0]) for q in questions]) > 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"digits": 0}, "dataset.digits must be at least 1"),
        ({"digits": 40}, "is too large: questions exceed 62 bits"),
        ({"test": 0}, "dataset.test must leave some examples"),
        ({"test": -1}, "dataset.test must be a number of examples"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        input_pipeline.load("copy", **options)
