"""What is refused of a .pt2 that somebody sent: each would have run code, or taken the machine, when it was opened."""

import copy
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo import build, images

from zaq.errors import SourceError
from zaq.ir.capture import quiet
from zaq.run import Run
from zaq.sources import load

Change = Callable[[dict[str, Any], Path], None]
ROOT = "model/"
MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


@pytest.fixture(scope="module")
def parts() -> dict[str, bytes]:
    """The entries of a good file."""
    buffer = io.BytesIO()
    with quiet():
        batch = ({0: torch.export.Dim.AUTO},)
        torch.export.save(torch.export.export(build("residual"), (images(2),), dynamic_shapes=batch), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(ROOT + name, data)
    return path


def changed(parts: dict[str, bytes], path: Path, change: Change, entry: str = MODEL) -> Path:
    """The good file, with its JSON changed by a function that is told where a marker would be made."""
    value = json.loads(parts[entry])
    change(value, path.parent / "marker")
    return written(path, list((parts | {entry: json.dumps(value).encode()}).items()))


def bomb(marker: Path) -> bytes:
    """A pickle that makes the marker when it is loaded."""

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    return buffer.getvalue()


def graph(program: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = program["graph_module"]["graph"]
    return found


def renamed(program: dict[str, Any], old: str, new: str) -> None:
    text = json.dumps(program).replace(json.dumps(old), json.dumps(new))
    program.clear()
    program.update(json.loads(text))


def code(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def node(program: dict[str, Any], target: str, inputs: list[dict[str, Any]]) -> None:
    """Another node, in front of all others, whose result nobody reads."""
    value = copy.deepcopy(graph(program)["tensor_values"][graph(program)["inputs"][-1]["as_tensor"]["name"]])
    graph(program)["tensor_values"]["extra"] = value
    made = copy.deepcopy(graph(program)["nodes"][0])
    graph(program)["nodes"].insert(
        0, made | {"target": target, "inputs": inputs, "outputs": [{"as_tensor": {"name": "extra"}}], "name": "extra"}
    )


def text(value: str, name: str = "") -> dict[str, Any]:
    return {"name": name, "arg": {"as_string": value}, "kind": 1}


def image(program: dict[str, Any]) -> str:
    name: str = graph(program)["inputs"][-1]["as_tensor"]["name"]
    return name


def an_input(program: dict[str, Any], marker: Path) -> None:
    renamed(program, image(program), f"x={code(marker)}")


def a_node(program: dict[str, Any], marker: Path) -> None:
    renamed(program, graph(program)["nodes"][0]["name"], f"a = {code(marker)}; b")


def a_parameter(program: dict[str, Any], marker: Path) -> None:
    spec = program["graph_module"]["signature"]["input_specs"][0]["parameter"]
    spec["parameter_name"] = f'w"); {code(marker)}; ("'


def an_argument(program: dict[str, Any], marker: Path) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"] = [f"x={code(marker)}"]


def a_structure(program: dict[str, Any], marker: Path) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    enum = json.dumps([{"__enum__": True, "fqn": "marker_module:A", "name": "a"}])
    leaf = {"type": None, "context": None, "children_spec": []}
    signature["out_spec"] = json.dumps([1, {"type": "builtins.dict", "context": enum, "children_spec": [leaf]}])


def a_file(program: dict[str, Any], marker: Path) -> None:
    arguments = [
        text(str(marker), "filename"),
        {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
        {"name": "size", "arg": {"as_int": 64}, "kind": 1},
    ]
    node(program, "torch.ops.aten.from_file.default", arguments)


def a_function(program: dict[str, Any], marker: Path) -> None:
    node(program, "torch.os.system", [text(f"touch {marker}")])


def an_unknown_one(program: dict[str, Any], marker: Path) -> None:
    node(program, "torch.ops.theirs.spin.default", [text("x")])


def a_size(program: dict[str, Any], marker: Path) -> None:
    sizes = graph(program)["tensor_values"][image(program)]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = code(marker)


def a_tower(program: dict[str, Any], marker: Path) -> None:
    sizes = graph(program)["tensor_values"][image(program)]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = "Pow(Integer(9), Pow(Integer(9), Integer(99)))"


def a_count(program: dict[str, Any], marker: Path) -> None:
    program["range_constraints"]["u9999999999"] = {"min_val": 0, "max_val": 1}


REFUSED: dict[str, tuple[Change, str]] = {
    "input": (an_input, "the name .x=__import__"),
    "node": (a_node, "the name .a = __import__"),
    "parameter": (a_parameter, "the name .w"),
    "argument": (an_argument, "the name .x=__import__"),
    "structure": (a_structure, "the key"),
    "file": (a_file, "the operator 'torch.ops.aten.from_file.default'"),
    "function": (a_function, "the operator 'torch.os.system'"),
    "unknown": (an_unknown_one, "the operator 'torch.ops.theirs.spin.default'"),
    "size": (a_size, "the size .__import__"),
    "tower": (a_tower, r"the size 'Pow\(Integer\(9\), Pow"),
    "count": (a_count, "the symbol 'u9999999999'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_program_that_would_run_something(
    name: str, parts: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = REFUSED[name]
    (tmp_path / "marker_module.py").write_text(f"{code(tmp_path / 'marker')}\nclass A: a = 1")
    monkeypatch.syspath_prepend(str(tmp_path))  # type: ignore[no-untyped-call]
    with pytest.raises(SourceError, match=rf"bad\.pt2: .*{message}"):
        load(str(changed(parts, tmp_path / "bad.pt2", change)))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("part", ["outputs", "output_specs", "module_call_graph"])
def test_parts_that_do_not_fit_together(part: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    def emptied(program: dict[str, Any], marker: Path) -> None:
        module = program["graph_module"]
        for place in (module, module["graph"], module["signature"]):
            place.update({part: []} if part in place else {})

    with pytest.raises(SourceError, match=r"bad\.pt2: "):
        load(str(changed(parts, tmp_path / "bad.pt2", emptied)))


def test_a_run_is_read_in_the_same_way(parts: dict[str, bytes], tmp_path: Path) -> None:
    """`zaq export`, `verify` and `profile` open the checkpoint of a run, which may be somebody else's."""
    changed(parts, tmp_path / "quantized.pt2", a_file)
    for read in (Run(tmp_path).program, Run(tmp_path).student):
        with pytest.raises(SourceError, match=r"quantized\.pt2: .*from_file"):
            read()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["twice", "capitals", "outside"])
def test_entries_that_two_readers_take_for_two_things(name: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    """torch's reader takes the first entry of a name, in whatever case; Python's the last, and in that case."""
    samples, harm = "data/sample_inputs/model.pt", bomb(tmp_path / "marker")
    others = [(n, d) for n, d in parts.items() if n != samples]
    entries = {
        "twice": [(samples, harm), *others, (samples, parts[samples])],
        "capitals": [*others, (samples, parts[samples]), (samples.replace("model.pt", "MODEL.PT"), harm)],
        "outside": [*others, ("../../" + samples, harm)],
    }[name]
    with pytest.warns(UserWarning, match="Duplicate") if name == "twice" else quiet():
        path = written(tmp_path / "bad.pt2", entries)
    with pytest.raises(SourceError, match=r"bad\.pt2: .*(two entries are called|leads out of the archive)"):
        load(str(path))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["SAMPLE_INPUTS/MODEL.PT", "sample_inputs/model.pt", "weights/model.pt", "x.so"])
def test_entries_that_nobody_needs_are_not_read(name: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    """Only what was checked is handed to torch; an old form of the weights, or a compiled library, is not there."""
    entries = [(n, d) for n, d in parts.items() if n.lower() != f"data/{name}".lower()]
    path = written(tmp_path / "odd.pt2", [(f"data/{name}", bomb(tmp_path / "marker")), *entries])
    torch.testing.assert_close(load(str(path)).graph(images()), build("residual")(images()))
    assert not (tmp_path / "marker").exists()


def test_weights_that_are_not_in_the_file(parts: dict[str, bytes], tmp_path: Path) -> None:
    def repeated(config: dict[str, Any], marker: Path) -> None:
        meta = next(iter(config["config"].values()))["tensor_meta"]
        meta["sizes"] = [{"as_int": 600000}, {"as_int": 600000}]
        meta["strides"] = [{"as_int": 0}, {"as_int": 0}]

    def beyond(config: dict[str, Any], marker: Path) -> None:
        next(iter(config["config"].values()))["tensor_meta"]["storage_offset"] = {"as_int": 10**6}

    for change, message in ((repeated, "3.6e.11 elements, which are not in the file"), (beyond, "reaches beyond")):
        with pytest.raises(SourceError, match=message):
            load(str(changed(parts, tmp_path / "bad.pt2", change, WEIGHTS)))


def test_bombs(parts: dict[str, bytes], tmp_path: Path) -> None:
    deep = written(tmp_path / "deep.pt2", [*(parts | {MODEL: b"[" * 200_000 + b"]" * 200_000}).items()])
    with pytest.raises(SourceError, match=r"deep\.pt2: .*nested"):
        load(str(deep))
    path = tmp_path / "large.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(ROOT + name, data)
        with archive.open(ROOT + "data/weights/weight_999", "w") as stream:
            for _ in range(300):
                stream.write(bytes(2**20))
    with pytest.raises(SourceError, match=r"large\.pt2: .*would unpack to 30\d MiB, more than the \d+ that are taken"):
        load(str(path))


class Busy(nn.Module):
    """Operators of many kinds: a padding by name, a size out of the batch, a graph inside the graph, a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        with torch.no_grad():
            y = self.conv(x)
        z = torch.einsum("nchw,ncd->nhwd", y, y.mean(3))
        return {"a b": nn.functional.gelu(z, approximate="tanh"), "rest": [y.reshape(y.shape[0] * 2, -1)]}


def test_what_models_do_say_is_not_refused(tmp_path: Path) -> None:
    with quiet():
        program = torch.export.export(Busy().eval(), (images(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.export.save(program, tmp_path / "net.pt2")
    operators = {str(n.target) for n in load(str(tmp_path / "net.pt2")).graph.graph.nodes}
    assert {"aten.gelu.default", "aten.conv2d.default"} <= operators
