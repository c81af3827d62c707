"""`zaq explain` on networks made by hand, whose units are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import zaq_here
from PIL import Image
from torch import Tensor, nn

import zaq
from zaq.config.card import Card
from zaq.explain.concepts import GRID, probe_of
from zaq.methods.rtn import RTN

CARD = Card(input=(3, GRID, GRID), mean=(0.0,) * 3, std=(1.0,) * 3)
IMAGES = 10


class ByHand(nn.Module):
    """Unit 0: red and not green; 1: red or green; 2: green; 3: nothing at all. A clamp makes all that fires alike."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.eyes.weight.copy_(torch.tensor([[1.0, -2, 0], [1, 1, 0], [0, 1, 0], [-1, -1, -1]])[..., None, None])
            self.eyes.bias.copy_(torch.tensor([-0.5, -0.5, -0.5, -1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.clamp(self.eyes(x), 0, 0.25).mean((2, 3)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of it, and beside it boxes: red ones are of class `<a>`, green ones of class b, and they overlap."""
    folder = tmp_path_factory.mktemp("explain")
    quantized = zaq.quantize(ByHand().eval(), torch.zeros(1, 3, GRID, GRID), "w8a8", RTN(), card=CARD)
    quantized.save(folder / "run")
    for name in ("images", "labels"):
        (folder / "boxes" / name).mkdir(parents=True)
    (folder / "boxes" / "coco.names").write_text("unused\n<a>\nb\n")
    for i in range(IMAGES):
        pixels = np.zeros((GRID, GRID, 3), np.uint8)
        red, green = (slice(i, i + 2), slice(3, 7)), (slice(i, i + 2), slice(5, 9))
        pixels[red][..., 0] = 255
        pixels[green][..., 1] = 255
        Image.fromarray(pixels).save(folder / "boxes" / "images" / f"{i}.png")
        lines = [box(1, *red), box(2, *green)]
        (folder / "boxes" / "labels" / f"{i}.txt").write_text("\n".join(lines))
    return folder


def box(label: int, rows: slice, columns: slice) -> str:
    middle = [(s.start + s.stop) / 2 / GRID for s in (columns, rows)]
    size = [(s.stop - s.start) / GRID for s in (columns, rows)]
    return " ".join(map(str, (label, *middle, *size)))


def test_units_made_by_hand_are_told_as_they_were_made(made: Path, tmp_path: Path) -> None:
    done = zaq_here("explain", made / "run", "--data", f"yolo:{made / 'boxes'}", "--json", "-o", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["layer"] == "eyes" and found["images"] == IMAGES
    assert [u["before"] for u in found["units"]] == ["(<a> AND NOT b)", "(<a> OR b)", "b", None]
    assert [u["after"] for u in found["units"]] == ["(<a> AND NOT b)", "(<a> OR b)", "b", None]
    assert [u["state"] for u in found["units"]] == ["kept", "kept", "kept", "none before"]
    assert [u["iou_before"] for u in found["units"]] == pytest.approx([1, 1, 1, 0])
    assert set(found["concepts"]) == {"<a>", "b"} and found["concepts"]["b"][0] == pytest.approx(1 + 2 / 3, abs=0.01)
    page = (tmp_path / "page.html").read_text()
    assert "&lt;a&gt; AND NOT b" in page and "<a>" not in page and page.count("data:image/png") == 4 * 2 * 4
    assert "http:" not in page and "https:" not in page


def test_without_data_the_concepts_are_the_float_networks_units(made: Path, tmp_path: Path) -> None:
    done = zaq_here("explain", made / "run", "--json", "--limit", 40, "-o", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["data"] is None and found["images"] == 40
    assert [u["after"] for u in found["units"]][:3] == ["unit 0", "unit 1", "unit 2"]
    assert "synthetic samples" in (tmp_path / "page.html").read_text()


def test_classes_and_groups_of_them(tmp_path: Path) -> None:
    for name in ("cat", "dog", "ship"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (GRID, GRID)).save(tmp_path / "data" / name / "0.png")
    (tmp_path / "groups.json").write_text(json.dumps({"pet": ["cat", 1]}))
    card = CARD.override(classes=3, class_names=("cat", "dog", "ship"))
    found = probe_of(f"folder:{tmp_path / 'data'}", card, groups=tmp_path / "groups.json")
    assert found.names == ["cat", "dog", "ship", "pet"] and found.labels == (0, 1, 2)
    assert found.concepts().tolist() == [[True, False, False], [False, True, False], [False, False, True],
                                         [True, True, False]]  # fmt: skip


def test_cifars_super_classes(cifar: str) -> None:
    found = probe_of(cifar, Card(input=(3, 32, 32), mean=(0.5,) * 3, std=(1.0,) * 3, classes=10), limit=300)
    held = dict(zip(found.names, found.concepts(), strict=True))
    assert torch.equal(held["vehicle"], held["airplane"] | held["automobile"] | held["ship"] | held["truck"])
    assert torch.equal(held["animal"], ~held["vehicle"])


@pytest.mark.parametrize(("args", "said"), [
    (["--data", "images:BOXES/images"], "holds images alone, and concepts are made of labels"),
    (["--data", "yolo:BOXES", "--layer", "eye"], "unknown layer 'eye'. Did you mean 'eyes'?"),
    (["--data", "yolo:BOXES", "--limit", "3"], "3 images are too few; 8 are the least"),
    (["--data", "yolo:BOXES", "--groups", "BOXES/coco.names"], "are of classes of whole images; yolo has none"),
    (["--data", "cifr10:BOXES"], "Did you mean 'cifar10'?"),
    (["-o", "BOXES/coco.names"], "exists already; name another page with -o"),
])  # fmt: skip
def test_what_cannot_be_explained_is_a_sentence(made: Path, tmp_path: Path, args: list[str], said: str) -> None:
    filled = [a.replace("BOXES", str(made / "boxes")) for a in args]
    done = zaq_here("explain", made / "run", "-o", tmp_path / "page.html", *filled)
    assert done.exit_code == 2 and said in done.stderr and not (tmp_path / "page.html").exists(), done.output


def test_a_run_of_an_older_zaq_keeps_no_float_network(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("quantized.pt2", "options.json", "samples.safetensors"):
        (run / name).write_bytes((made / "run" / name).read_bytes())
    done = zaq_here("explain", run, "-o", tmp_path / "page.html")
    assert done.exit_code == 2 and "keeps no float network to compare with" in done.stderr


def test_no_method_can_import_it() -> None:
    import test_house

    reached = test_house.reached_from([m for m in test_house.MODULES if m.split(".")[1] in ("methods", "stages")])
    assert not [name for name in reached if name.startswith("zaq.explain")]
