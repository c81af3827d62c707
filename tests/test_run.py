"""How files come into place: whole, and through no link that somebody left there."""

import os
import stat
from multiprocessing import get_context
from pathlib import Path

import pytest

from zaq.errors import OutputError
from zaq.run import write_file


def test_a_link_left_where_the_file_is_prepared_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out" / "report.json"
    path.parent.mkdir()
    victim.write_text("mine")
    planted = path.with_name(".report.json.partial")  # where it was prepared once
    planted.symlink_to(victim)
    path.symlink_to(victim)
    write_file(path, "new")
    assert victim.read_text() == "mine" and path.read_text() == "new" and not path.is_symlink()
    assert sorted(p.name for p in path.parent.iterdir()) == [planted.name, path.name]


def test_the_rights_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="a: cannot be written"):
        write_file(tmp_path / "a", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def write_often(path: Path, letter: str) -> None:
    for _ in range(200):
        write_file(path, letter * 10_000)


def test_two_processes_do_not_mix_what_they_write(tmp_path: Path) -> None:
    path = tmp_path / "a"
    both = [get_context("fork").Process(target=write_often, args=(path, letter)) for letter in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0] and path.read_text() in ("a" * 10_000, "b" * 10_000)
    assert list(tmp_path.iterdir()) == [path]
