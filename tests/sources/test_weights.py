"""Weights alone, and the architecture that they belong to."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, zaq_here
from safetensors.torch import load_file, save_file
from torch import Tensor

from zaq.cli import main
from zaq.errors import SourceError
from zaq.sources import load

SHIPPED = ROOT / "models" / "resnet20_cifar10.safetensors"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return load_file(SHIPPED)


def test_a_state_dict_as_a_user_has_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    """As training scripts save it: nested, with an epoch beside it, and under the names of DataParallel and
    torch.compile.
    """
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3, "state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}, path)
    done = zaq_here("inspect", path, "--arch", "resnet20", "--normalize", "cifar10")
    assert done.exit_code == 0 and "21 batch norms fold" in done.stdout, done.output
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load(str(path), arch="resnet20").graph(x), load("zoo:resnet20_cifar10").graph(x))


def test_weights_without_an_architecture_ask_for_one(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pt")
    save_file(state, tmp_path / "weights.safetensors")
    for name in ("weights.pt", "weights.safetensors"):
        done = CliRunner().invoke(main, ["inspect", str(tmp_path / name)])
        assert (
            done.exit_code == 2
            and "holds weights alone" in done.stderr
            and "--arch NAME, one of resnet20, timm:NAME" in done.stderr
        )


def test_a_card_names_the_architecture_too(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text('{"arch": "resnet20", "kwargs": {"classes": 10}, "input": [3, 32, 32]}')
    assert load(str(tmp_path / "net.safetensors")).card.input == (3, 32, 32)
    (tmp_path / "net.json").write_text('{"arch": "resnet21"}')
    with pytest.raises(SourceError, match=r"unknown arch 'resnet21'\. Did you mean 'resnet20'"):
        load(str(tmp_path / "net.safetensors"))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"arch": "my_marker:make"}, "arch 'my_marker:make' would be called, whatever it is"),
        ({"arch": "os:system", "kwargs": {"command": "true"}}, "arch 'os:system' would be called"),
        ({"arch": "timm:test_resnet", "kwargs": {"checkpoint_path": "other.pth"}}, "kwargs: checkpoint_path"),
        ({"arch": "timm:test_resnet", "kwargs": {"act_layer": {"a": 1}}}, "kwargs: act_layer"),
        ({"arch": "timm:test_resnet", "kwargs": {"act_layer": "../x"}}, "kwargs: act_layer '../x' is neither"),
    ],
)
def test_a_card_calls_nothing(
    card: dict[str, object], message: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies beside weights came with them; what is called is named on the command line, where it is called."""
    save_file(state, tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(json.dumps(card))
    (tmp_path / "my_marker.py").write_text(
        "from pathlib import Path\nPath('marker').touch()\nfrom zaq.sources.zoo import resnet20 as make"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=rf"net\.json: {message}"):
        load(str(tmp_path / "net.safetensors"))
    assert not (tmp_path / "marker").exists()
    monkeypatch.delitem(sys.modules, "my_marker", raising=False)
    load(str(tmp_path / "net.safetensors"), {"input": (3, 32, 32)}, arch="my_marker:make", kwargs={"classes": 10})
    assert (tmp_path / "marker").exists()


def test_a_card_nested_too_deep(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text("[" * 200_000)
    with pytest.raises(SourceError, match=r"net\.json: the card is not readable as JSON \(nested"):
        load(str(tmp_path / "net.safetensors"), arch="resnet20")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_among_the_weights_is_not_loaded(zipped: bool, state: dict[str, Tensor], tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "marker",))

    path = tmp_path / "weights.pth"
    torch.save(state | {"epoch": Bomb()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SourceError, match=r"weights\.pth: holds more than tensors"):
        load(str(path), arch="resnet20")
    assert not (tmp_path / "marker").exists()


def test_an_archive_that_unpacks_to_more_than_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("weights/data/0", "w") as stream:
        for _ in range(300):
            stream.write(bytes(2**20))
    with pytest.raises(SourceError, match=r"weights\.pth: this archive is refused: it would unpack to 300 MiB"):
        load(str(path), arch="resnet20")


def test_keys_that_do_not_fit_are_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = {k: v for k, v in state.items() if k != "fc.bias"} | {
        "head.bias": torch.zeros(1),
        "fc.weight": torch.zeros(7, 64),
    }
    torch.save(wrong, tmp_path / "weights.pt")
    with pytest.raises(SourceError) as caught:
        load(str(tmp_path / "weights.pt"), arch="resnet20")
    told = str(caught.value)
    assert (
        "1 missing: fc.bias;" in told
        and "1 unexpected: head.bias;" in told
        and "fc.weight (7, 64) for (10, 64)" in told
    )
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(SourceError, match=r"missing: conv1\.weight, bn1\.weight, bn1\.bias, \.\.\."):
        load(str(tmp_path / "weights.pt"), arch="resnet20")


@pytest.mark.parametrize("content", [{}, [torch.zeros(1)], {"lr": 0.1}, torch.zeros(3)])
def test_what_is_no_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(SourceError, match="holds no weights by name"):
        load(str(tmp_path / "weights.pt"), arch="resnet20")


@pytest.mark.parametrize("words", [("params_ema",), ("net",), ("whatever",), ("checkpoint", "weights"), ("a", "net")])
def test_a_lone_dict_of_weights_is_found(words: tuple[str, ...], state: dict[str, Tensor], tmp_path: Path) -> None:
    """Wherever it lies, beside numbers and an optimizer's state."""
    content: dict[str, object] = dict(state)
    for word in reversed(words):
        moments = {"state": {0: {"step": torch.zeros(()), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
        content = {word: content, "epoch": 3, "best": torch.zeros(()), "optimizer": moments, "empty": {}}
    torch.save(content, tmp_path / "weights.pth")
    source = load(str(tmp_path / "weights.pth"), arch="resnet20")
    assert torch.equal(source.graph.get_parameter("fc.bias"), state["fc.bias"])


def test_the_averaged_weights_are_taken_of_two(state: dict[str, Tensor], tmp_path: Path) -> None:
    """As BasicSR's own loader does; of names that say nothing, none is guessed."""
    other = {k: torch.zeros_like(v) for k, v in state.items()}
    torch.save({"params": other, "params_ema": state}, tmp_path / "weights.pth")
    source = load(str(tmp_path / "weights.pth"), arch="resnet20")
    assert torch.equal(source.graph.get_parameter("fc.bias"), state["fc.bias"])
    torch.save({"first": other, "second": state}, tmp_path / "weights.pth")
    with pytest.raises(SourceError, match=r"holds several networks' weights \(first, second\), and which is meant"):
        load(str(tmp_path / "weights.pth"), arch="resnet20")


def test_the_keys_that_are_there_are_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "config": {"depth": 20}, "history": [1.0]}, tmp_path / "weights.pth")
    with pytest.raises(SourceError, match=r"holds no weights by name .* under its keys epoch, config, history;"):
        load(str(tmp_path / "weights.pth"), arch="resnet20")


def test_safetensors_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"junk")
    with pytest.raises(SourceError, match=r"net\.safetensors: is no readable safetensors"):
        load(str(tmp_path / "net.safetensors"), arch="resnet20")


def test_the_architecture_of_a_library(tmp_path: Path) -> None:
    """Its input size is taken over, its normalisation is not: these weights may know another."""
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "mine.pt")
    source = load(str(tmp_path / "mine.pt"), arch="timm:test_resnet", kwargs={"num_classes": 7})
    assert (
        source.card.input == (3, 160, 160)
        and not source.card.knows_pixels
        and source.graph(torch.zeros(2, 3, 160, 160)).shape == (2, 7)
    )
