"""Prompts, targets and end tokens of text and tasks."""

import numpy as np
import pytest

import input_pipeline
from grlu.errors import UserError
from input_pipeline.text.prompts import Prompts


def read(data, **options):
    prompts = Prompts.from_data(data, **{"prompt": None, "horizon": None, "end": None, **options})
    return prompts, prompts.columns(data.preprocess({k: v[:3] for k, v in data.train.items()}))


def test_a_task_defines_its_prompt_length():
    prompts, batch = read(input_pipeline.load("addition"))
    assert (prompts.length, prompts.horizon, prompts.vocabulary) == (7, 3, 13)
    for prompt, target in zip(batch["prompt"], batch["target"], strict=True):
        one, two = prompts.decode(prompt)[1:-1].split("+")
        assert int(one) + int(two) == int(prompts.decode(target))
    assert prompts.target_mask(batch["target"]).all()


def test_a_text_is_cut_at_prompt_and_horizon():
    data = input_pipeline.load("sonnets", length=32)
    prompts, batch = read(data, prompt=10, horizon=4)
    assert batch["prompt"].shape == (3, 10)
    np.testing.assert_array_equal(batch["target"], data.train["tokens"][:3, 10:14])
    assert read(data)[1]["prompt"].shape == (3, 1)
    np.testing.assert_array_equal(prompts.sequences(data), data.train["tokens"][:, :14])
    assert set(batch) == {"prompt", "target"}


def test_targets_are_padded_with_end_tokens():
    data = input_pipeline.load("sonnets", length=32)
    prompts, batch = read(data, prompt=8, end=" ")
    counted = np.asarray(prompts.target_mask(batch["target"]))
    for row, kept in zip(np.asarray(batch["target"]), counted, strict=True):
        text = prompts.decode(row)
        assert text.index(" ") + 1 == kept.sum()
        assert set(text[int(kept.sum()) :]) <= {" "}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": 30, "horizon": 4}, "has 33 tokens, too few for a trainer.prompt of 30 and a"),
        ({"prompt": 33}, "too few for a trainer.prompt of 33"),
        ({"end": "the"}, "trainer.end must be one token, and 'the' is 3"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        read(input_pipeline.load("sonnets", length=32), **options)


def test_images_have_no_prompts():
    with pytest.raises(UserError, match="a policy continues text, and digits is not text"):
        read(input_pipeline.load("digits"))
