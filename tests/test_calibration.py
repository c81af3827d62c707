"""`benchmarks/estimate.py` measures a network from beginning to end."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import benchmark_script


@pytest.mark.slow  # a generator is trained
def test_a_row_says_what_is_known_without_data_and_what_was_counted(shared: Path, cifar: str, tmp_path: Path) -> None:
    script = benchmark_script("estimate")
    place = ["--cifar", cifar.partition(":")[2], "--shared", shared, "--images", tmp_path, "-o", tmp_path / "rows.csv"]
    few = ["--only", "zoo:", "--bits", "w8a8", "--methods", "rtn", "--limit", "40"]
    for _ in range(2):  # the second finds nothing to do
        done = CliRunner().invoke(script.main, ["gather", *map(str, place), *few], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    (row,) = script.read_rows(tmp_path / "rows.csv")
    assert row["real"] >= 0.95 and row["agreement"] > 0.9 and row["sqnr"] > 15
    assert row["images"] == 40 and not done.output
