"""Records read from the folders of runs."""

import json
import re
import shutil

import numpy as np
import pytest

from grlu.errors import UserError
from reports.record import read_record, read_records


def test_a_run_is_read(run):
    record = read_record(run)
    assert (record.label, record.seeds, record.metrics) == ("two", 2, ["accuracy", "reward"])
    series = record.series("validation", "accuracy")
    np.testing.assert_array_equal(series["epoch"], [1, 2])
    np.testing.assert_array_equal(series["step"], [78, 156])
    assert (series["sd"] > 0).all()
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert all(repr(value) in last for value in record.final("test", "accuracy"))
    assert len(record.series("test", "accuracy")["mean"]) == 1
    assert record.final("test", "nothing") is None


def test_one_seed_has_no_spread(runs):
    record = read_record(runs / "one")
    assert record.final("test", "accuracy")[1] is None
    np.testing.assert_array_equal(record.series("train", "reward")["sd"], [0])


def test_seconds_come_from_the_events(run):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = run.glob("events.*")
    content, at, times = file.read_bytes(), 0, []
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        times.append(Event.FromString(content[at + 12 : at + 12 + length]).wall_time)
        at += 16 + length
    assert read_record(run).seconds == times[-1] - times[0] > 0
    # A truncated file, as a killed run leaves it, still has the preceding events.
    file.write_bytes(content[:-5])
    assert read_record(run).seconds == times[-2] - times[0]
    # A resumed run has a second file: the time in between doesn't count.
    shutil.copy(file, run / "events.out.tfevents.9999999999.x")
    assert read_record(run).seconds == pytest.approx(2 * (times[-2] - times[0]))
    for each in run.glob("events.*"):
        each.unlink()
    assert read_record(run).seconds is None


def test_runs_of_one_name_get_unique_labels(run, runs):
    assert [r.label for r in read_records([run, runs / "one"])] == ["two", "one"]
    labels = [r.label for r in read_records([run, runs / "two"])]
    assert labels == [f"{run.parent.name}/two", f"{runs.name}/two"]
    assert [r.label[-3:] for r in read_records([run, run])] == ["(1)", "(2)"]


def test_stages_are_ordered_by_config_or_start_time(pipeline):
    record = read_record(pipeline)
    began = [stage.label for stage in record.stages]
    assert began == ["head", "encoder"]
    assert record.seconds == sum(stage.seconds for stage in record.stages)
    for listed in (
        ["encoder", "head"],
        [{"name": "encoder"}, {"name": "head"}],
        {"encoder": {}, "head": {}},
    ):
        (pipeline / "config.json").write_text(json.dumps({"stages": listed}))
        record = read_record(pipeline)
        assert [stage.label for stage in record.stages] == ["encoder", "head"]
    assert record.shown.label == "head"
    (pipeline / "stages" / "head" / "metrics.csv").unlink()
    assert read_record(pipeline).shown.label == "encoder"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", "{", r"config\.json can't be read: .*line 1"),
        ("config.json", "[]", r"config\.json must hold a JSON object, not a list"),
        (
            "metrics.csv",
            "step,epoch\n1,one\n",
            r"metrics\.csv has a cell that is not a number.*one",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(run, name, text, said):
    (run / name).write_text(text)
    with pytest.raises(UserError, match=said):
        read_record(run)


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} holds no run"):
        read_record(tmp_path)
    with pytest.raises(UserError, match=r"there is no folder .*absent"):
        read_record(tmp_path / "absent")
