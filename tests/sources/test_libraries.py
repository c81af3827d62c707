"""timm, torchvision and the hub, by their architectures: nothing is downloaded in a test."""

import json
import re
from pathlib import Path

import pytest
from conftest import zaq_here

pytest.importorskip("timm")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and nothing in any cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def test_a_network_of_timm_brings_its_preprocessing() -> None:
    flags = ("--random-weights", "--input-shape", "3,32,32", "--kwargs", '{"num_classes": 5}', "--json")
    done = zaq_here("inspect", "timm:test_resnet", *flags)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["name"] == "test_resnet" and "the weights are random (--random-weights)" in found["warnings"][0]
    card = found["card"]
    assert card["mean"] == [0.5, 0.5, 0.5] and card["classes"] == 5 and (card["resize"], card["crop"]) == (33, 32)


def test_a_network_of_torchvision() -> None:
    done = zaq_here("inspect", "torchvision:squeezenet1_1", "--random-weights", "--input-shape", "3,64,64", "--json")
    assert done.exit_code == 0, done.stderr
    card = json.loads(done.stdout)["card"]
    assert (
        card["mean"] == [0.485, 0.456, 0.406] and card["classes"] == 1000 and (card["resize"], card["crop"]) == (73, 64)
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:test_resnt", "Did you mean 'test_resnet'"),
        ("timm:test_resnet.nosuch", "Invalid pretrained tag (nosuch)"),
        ("torchvision:resnet1", "Did you mean 'resnet18'"),
        ("hf-hub:resnet18", "hf-hub:OWNER/NAME is expected"),
    ],
)
def test_names_that_do_not_exist(spec: str, message: str) -> None:
    done = zaq_here("inspect", spec)
    assert done.exit_code == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("spec", ["timm:test_resnet", "torchvision:squeezenet1_1", "hf-hub:timm/nothing_such"])
def test_offline_without_a_cache_is_a_sentence(spec: str) -> None:
    done = zaq_here("quantize", spec, "--dry-run")
    told = done.stderr.splitlines()[-1]
    assert done.exit_code == 2 and re.match(
        f"zaq: {spec}: is not in the cache and cannot be downloaded .*Try where there is a network", told
    )
    assert ("--random-weights" in told) == (not spec.startswith("hf-hub")) and "Traceback" not in done.stderr


def test_arguments_that_do_not_fit() -> None:
    done = zaq_here("inspect", "timm:test_resnet", "--random-weights", "--kwargs", '{"wide": 1}')
    assert done.exit_code == 2 and "timm cannot make it: TypeError" in done.stderr
    done = zaq_here("inspect", "torchvision:resnet18", "--kwargs", '{"weights": "IMAGENET1K_V3"}')
    assert done.exit_code == 2 and "unknown weights 'IMAGENET1K_V3'. There is: DEFAULT, IMAGENET1K_V1" in done.stderr


def test_weights_of_a_library_are_not_unpickled_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What lies in torch's cache under the name of torchvision's weights is read as tensors alone."""
    import torch

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, ("raise SystemExit('the pickle ran')",))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(Bomb(), tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    done = zaq_here("inspect", "torchvision:squeezenet1_1")
    assert done.exit_code == 2 and "torchvision cannot make it: UnpicklingError" in done.stderr


@pytest.mark.usefixtures("offline")
def test_the_hubs_client_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing answers, its cache alone is read, and that only while zaq asks."""
    import huggingface_hub
    from huggingface_hub import constants

    from zaq.sources.libraries import _hub_or_its_cache

    def silent() -> None:
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", silent)
    with pytest.raises(KeyError), _hub_or_its_cache():
        assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE
