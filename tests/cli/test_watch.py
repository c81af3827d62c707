"""A run is watched from elsewhere by its log, until it is whole."""

import json
import time
from pathlib import Path

import pytest
from conftest import zaq_here

ROWS = [{"stage": "synthesis", "step": 0, "loss": 2.5}, {"stage": "synthesis", "step": 7, "loss": 1.25}]


def written(folder: Path, *rows: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "log.jsonl").open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_once_says_where_a_run_is(tmp_path: Path) -> None:
    partial = written(tmp_path / "out.partial", *ROWS)
    with (partial / "log.jsonl").open("a") as stream:
        stream.write('{"stage": "refine", "st')  # a line that is being written
    done = zaq_here("watch", tmp_path / "out", "--once")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"synthesis            step 8      loss 1.25\n{tmp_path / 'out'}: under way\n"


def test_it_follows_until_the_run_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on while nobody looks: between two looks, and moves into its place at last."""
    partial, looks = written(tmp_path / "out.partial", *ROWS), []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            written(partial, {"stage": "polish", "step": 3, "held_out": 0.5})
        if len(looks) == 2:
            (partial / "report.json").write_text("{}")
            partial.rename(tmp_path / "out")

    monkeypatch.setattr(time, "sleep", sleep)
    done = zaq_here("watch", tmp_path / "out", "--every", "0.5")
    assert done.exit_code == 0 and looks == [0.5, 0.5], done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["synthesis", "polish", f"{tmp_path / 'out'}:"]
    assert done.stdout.endswith("out: whole\n") and "held_out 0.5" in done.stdout


def test_where_there_is_no_run_it_says_so_at_once(tmp_path: Path) -> None:
    done = zaq_here("watch", tmp_path / "out")
    assert done.exit_code == 2 and "name the folder that -o named" in done.stderr
