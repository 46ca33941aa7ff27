"""Complete reports: files, a self-contained page, and notes on missing parts."""

import base64
import html.parser
import json
import logging
import re
import shutil

import pytest

from grlu.errors import UserError
from reports import write_report


class Page(html.parser.HTMLParser):
    """Parser of a page's content and resources that checks the nesting of its tags."""

    def __init__(self, path):
        super().__init__()
        self.text, self.titles, self.images, self.loads, self.open = "", [], [], [], []
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        assert tag not in ("script", "link", "iframe")
        attrs = dict(attrs)
        self.loads += [attrs[name] for name in ("src", "srcset", "href") if name in attrs]
        if tag == "img":
            self.images.append(attrs["alt"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_remote_folder_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the run gs://bucket/x is not a local path"):
        write_report(["gs://bucket/x"])
    with pytest.raises(UserError, match="the report gs://bucket/x is not a local path"):
        write_report([run], "gs://bucket/x")
    assert not (tmp_path / "gs:").exists()


def test_run_becomes_a_self_contained_page_that_a_second_report_replaces(run):
    index = write_report([run])
    assert index == run / "report" / "index.html"
    page = Page(index)
    assert page.titles == ["Results", "Learning", "Learned model", "Settings"]
    assert page.images == [
        "Learning curves · two",
        "Accuracy against forward passes · two",
        "Confusion on the test split · two",
        "Latent map · two",
        "Receptive fields · two",
    ]
    # The page embeds every picture, light and dark, identical to the files next to it.
    pngs = {path.name: path.read_bytes() for path in index.parent.glob("*.png")}
    names = ("curves", "passes", "confusion", "latent", "fields")
    assert set(pngs) == {f"{name}{end}.png" for name in names for end in ("", "-dark")}
    head = "data:image/png;base64,"
    assert all(each.startswith(head) for each in page.loads)
    assert {base64.b64decode(each.removeprefix(head)) for each in page.loads} == set(pngs.values())
    assert "url(" not in index.read_text()
    assert "prefers-color-scheme: dark" in index.read_text()
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    columns = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    mean, sd = (100 * float(last[columns.index(f"test_accuracy{end}")]) for end in ("", "_sd"))
    assert f"{mean:.2f} ± {sd:.2f}" in page.text
    assert "2N, N = 2 antithetic pairs" in page.text

    shutil.rmtree(run / "checkpoints")  # Fewer pictures to draw.
    assert write_report([run]) == index
    assert (index.parent / "curves.png").read_bytes() == pngs["curves.png"]


def test_runs_are_shown_side_by_side(run, runs, tmp_path):
    index = write_report([run, runs / "one"])
    assert index == tmp_path / "reports-two-one" / "index.html"
    page = Page(index)
    assert [image for image in page.images if "Confusion" in image] == [
        "Confusion on the test split · two",
        "Confusion on the test split · one",
    ]
    assert "trainer.name" in page.text.split("Where the runs differ")[1]
    assert "model.name" not in page.text
    assert (index.parent / "fields-one-dark.png").is_file()
    shutil.rmtree(run / "checkpoints")  # Fewer pictures to draw.
    assert write_report([run], tmp_path / "out").parent == tmp_path / "out"


def test_a_pipeline_has_a_timeline_and_a_section_for_each_stage(pipeline):
    listed = [{"name": "encoder"}, {"name": "head"}]
    (pipeline / "config.json").write_text(json.dumps({"stages": listed}))
    measured = {"tasks": ["encoder", "head"], "accuracy": [[1.0, 0.0], [0.5, 1.0]]}
    measured |= {"average_accuracy": 0.75, "forgetting": 0.5}
    (pipeline / "summary.json").write_text(json.dumps({"continual": measured}))
    page = Page(write_report([pipeline]))
    assert page.titles[:4] == ["Results", "Stages", "Stage encoder", "Stage head"]
    assert page.images[:2] == ["Timeline of the stages · line", "Tasks one after the other · line"]
    for image in (
        "Latent map · encoder",
        "Reconstructions · encoder",
        "Confusion on the test split · head",
    ):
        assert image in page.images


def test_missing_parts_are_reported(run, caplog):
    shutil.rmtree(run / "checkpoints")
    with caplog.at_level(logging.WARNING, "grlu"):
        page = Page(write_report([run]))
    assert page.titles == ["Results", "Learning", "Settings", "Not in this report"]
    assert "has no checkpoint yet" in page.text
    assert "has no checkpoint yet" in caplog.text
    (run / "metrics.csv").unlink()
    page = Page(write_report([run]))
    assert page.titles == ["Results", "Settings", "Not in this report"]
    assert "has no metrics yet" in page.text


def test_stage_that_has_not_started_is_reported(pipeline):
    begun = pipeline / "stages" / "head"
    for left in (begun / "checkpoints", begun / "metrics.csv", *begun.glob("events.*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    page = Page(write_report([pipeline]))
    assert "head has no metrics yet" in page.text
    assert "head has no pictures of its model" in page.text


def test_names_are_text_and_not_html(run):
    odd = run.rename(run.with_name("<b>&x"))
    index = write_report([odd, odd])
    assert "<b>" not in index.read_text()
    assert "<b>&x" in Page(index).text
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in index.parent.iterdir())


def test_a_folder_that_cannot_be_written_is_named(run):
    shutil.rmtree(run / "checkpoints")  # Fewer pictures to draw.
    (run / "report").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write the report to .*report"):
        write_report([run])
