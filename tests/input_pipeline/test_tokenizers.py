"""Tokenizers: decoding inverts encoding."""

import os
import pathlib

import pytest

import grlu
from input_pipeline.tokenizers import GPT2, Bytes, Characters


@pytest.mark.parametrize(
    "make", [lambda text: Characters("".join(sorted(set(text)))), lambda _: Bytes()]
)
def test_decode_inverts_encode(make):
    text = "First Citizen:\nBefore we proceed — naïvely — any further"
    tokenizer = make(text)
    tokens = tokenizer.encode(text)
    assert tokens.min() >= 0
    assert tokens.max() < tokenizer.size
    assert tokenizer.decode(tokens) == text


def test_an_unknown_character_is_named():
    with pytest.raises(
        grlu.UserError, match="'é' at position 3 of the text is not in the vocabulary"
    ):
        Characters("acf").encode("cafécaf")


def test_invalid_utf8_is_replaced():
    assert Bytes().decode([65, 255, 66]) == "A�B"


def test_gpt_2_tokens_match_the_published_ones():
    pytest.importorskip("tiktoken", reason="GPT-2's tokens need tiktoken")
    root = os.environ.get("GRLU_TEST_DATA")
    if not root or not (pathlib.Path(root) / "gpt2_bpe").is_dir():
        pytest.skip("set GRLU_TEST_DATA to a folder with gpt2_bpe to test GPT-2's tokens")
    tokenizer = GPT2(pathlib.Path(root) / "gpt2_bpe")
    assert tokenizer.size == 50257
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.encode(" It's 2024,  I'll say").tolist()[:3] == [632, 338, 48609]
    text = "The naïve café…\n\n  two  spaces <|endoftext|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 50256 not in tokenizer.encode(text)


def test_mismatched_files_are_refused(tmp_path):
    pytest.importorskip("tiktoken", reason="GPT-2's tokens need tiktoken")
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nh e\n")
    (tmp_path / "encoder.json").write_text('{"h": 0}')
    with pytest.raises(grlu.UserError, match="are not GPT-2's: they do not match each other"):
        GPT2(tmp_path)
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(grlu.UserError, match="are not GPT-2's: they do not match each other"):
        GPT2(tmp_path)
