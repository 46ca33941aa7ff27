"""Table of a policy's samples in a report."""

import json

import pytest

from grlu.errors import UserError
from reports.record import Record
from reports.written import written


def record(path):
    return Record("run", path, {}, {}, None)


def sample(step, prompt, reward):
    texts = {"prompt": f"\n{prompt}=", "completion": f"{prompt}<{step}", "target": prompt}
    return {"step": step, **texts, "reward": reward}


def test_first_middle_and_last_step_are_shown(tmp_path):
    lines = [sample(step, p, step / 10) for step in (1, 2, 3, 4, 5) for p in ("12", "34")]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "samples.jsonl").write_text(text)
    page = written(record(tmp_path))
    for shown in ("step 1", "step 3", "step 5", "12&lt;3", "34&lt;5", "⏎12=", "0.5000"):
        assert shown in page
    assert "step 2" not in page
    assert page.count("<tr>") == 3
    (tmp_path / "samples.jsonl").write_text(text.split("\n")[0])
    assert written(record(tmp_path)).count("step") == 1


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
def test_only_a_line_feed_ends_a_line(character, tmp_path):
    line = json.dumps(sample(1, f"1{character}2", 0.0), ensure_ascii=False)
    (tmp_path / "samples.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert f"1{character}2" in written(record(tmp_path))


def test_missing_samples_show_nothing_and_a_broken_line_is_named(tmp_path):
    assert written(record(tmp_path)) == ""
    for line in ("{", "3", '{"step": 1}'):
        (tmp_path / "samples.jsonl").write_text(json.dumps(sample(1, "12", 0.0)) + f"\n{line}\n")
        with pytest.raises(UserError, match=r"samples.jsonl, line 2: not a policy's sample"):
            written(record(tmp_path))
