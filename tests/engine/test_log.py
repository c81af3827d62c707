"""What happened, in memory and in a file of JSON lines."""

import json
from pathlib import Path

import pytest

from zaq.engine.journal import Log, Record


def test_losses_go_to_a_file_as_they_come(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log("polish", 0, loss_q=1.5)
    log("polish", 1, loss_q=0.5)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == log.rows


def test_a_link_that_lies_there_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("kept")
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError):
        Log(tmp_path / "log.jsonl")("polish", 0, loss_q=1.5)
    assert (tmp_path / "theirs").read_text() == "kept"


def test_notes_are_joined() -> None:
    record = Record("polish")
    record.say("one")
    record.say("two")
    assert record.note == "one; two"
