"""The notebooks of docs/examples run from their first cell to their last, each in a kernel of its own."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
FOLDER = Path(__file__).parents[1] / "docs" / "examples"
# A network that needs no download, of the same library and with the same names of its layers.
SMALLER = {'"timm:resnet18"': '"timm:test_resnet", {"input": (3, 64, 64)}, random_weights=True'}


def test_no_notebook_holds_outputs() -> None:
    """They would be old before anybody looks, and nobody reads their diffs."""
    books = [nbformat.read(path, 4) for path in sorted(FOLDER.glob("*.ipynb"))]
    assert len(books) == 4
    for book in books:
        nbformat.validate(book)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar", "timm", "detector", "method"])
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    book = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    for cell in book.cells if name == "timm" else ():
        for text, smaller in SMALLER.items():
            cell.source = cell.source.replace(text, smaller)
    nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [out for cell in book.cells for out in cell.get("outputs", ())]
    assert not [out for out in shown if out["output_type"] == "error"]
    if name == "detector":
        assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"photo.png", "photo.float.png"}
    if name == "cifar":
        assert (tmp_path / "resnet20-w8a8" / "model.onnx").is_file()
        assert sum("border-radius" in out.get("data", {}).get("text/html", "") for out in shown) == 2, "the tiles"
