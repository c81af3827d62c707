"""Real architectures go all the way, by the functions of `benchmarks/coverage.py`; the benchmark itself has sixty."""

from types import ModuleType

import pytest
from conftest import benchmark_script
from torch import nn

from zaq.sources.operators import define_missing_operators

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own imports


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    define_missing_operators()
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    return benchmark_script("coverage")


@pytest.mark.parametrize(("name", "layers"), [
    pytest.param("timm:deit_tiny_patch16_224", 14, marks=pytest.mark.slow),
    ("torchvision:squeezenet1_1", 26),
])  # fmt: skip
def test_it_goes_all_the_way(name: str, layers: int, benchmark: ModuleType) -> None:
    row = benchmark.Row(
        name, {"size": 64, "bits": "w8a8", "method": "rtn", "constants": {}, "seed": 0, "cut": name.startswith("timm")}
    )
    benchmark.measure(row, 64, lambda: None)
    assert row.stage == "done" and row.layers == layers and row.worse < 0.05 and row.sqnr > 30, row
    assert name in benchmark.markdown([row])


def test_a_failure_is_a_row_with_its_stage_and_sentence(benchmark: ModuleType) -> None:
    settings = {"size": 64, "bits": "w8a8", "method": "rtn", "constants": {}, "seed": 0, "cut": False}
    row = benchmark.run_one(benchmark.Row("torchvision:no_such_net", settings, version="0 (abc)"), 60)
    assert row.stage == "build" and "no_such_net" in row.failure and "**build**" in benchmark.markdown([row])
    assert row.version == "0 (abc)" and "| 0 (abc) |" in benchmark.markdown([row])


def test_repeated_blocks_are_cut_to_two(benchmark: ModuleType) -> None:
    blocks = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5), nn.ReLU(), nn.ReLU(), nn.ReLU()]
    net = nn.Sequential(*blocks)
    benchmark.cut(net)
    assert list(net) == blocks[:2] + blocks[3:]
