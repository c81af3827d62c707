"""A few cases of the fuzzing that `fuzz.py` does by the thousand, at every change; and that it would notice."""

import io
import random
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fuzz
import mutate

EACH = 5  # cases of every target
QUICK = [t for t in fuzz.TARGETS if t not in ("run", "properties")]  # those that export take a second each


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "sound"
    fuzz.originals(folder)
    return folder


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_what_is_damaged_ends_in_a_sentence(target: str, sound: Path, tmp_path: Path) -> None:
    for index in range(EACH if target in QUICK else 2):
        assert fuzz.one(0, index, sound, tmp_path, target) is None


def test_a_fault_would_be_noticed(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace, a file outside the folder, and too long a time."""

    def trace(folder: Path, rng: random.Random) -> None:
        raise KeyError("q12")

    def outside(folder: Path, rng: random.Random) -> None:
        (folder.parent / "marker").touch()

    def slow(folder: Path, rng: random.Random) -> None:
        while True:
            rng.random()

    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    for case, word in ((trace, "KeyError: 'q12'"), (outside, "files outside its folder"), (slow, "more than")):
        monkeypatch.setitem(fuzz.TARGETS, "words", case)
        assert word in str(fuzz.one(0, 0, sound, tmp_path, "words"))


def test_an_archive_can_have_an_entry_of_any_name() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("ab", b"x")
    for seed in range(1000):
        zipfile.ZipFile(io.BytesIO(mutate.other_archive(stream.getvalue(), random.Random(seed))))
