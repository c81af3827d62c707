"""Mutation fuzzing of everything that zaq reads.

    python tests/fuzz/fuzz.py --seed 0 --cases 10000

A case is a number: it draws a target, damages what that reads, and reads it the way a user does. What may come of it is
an answer, or a sentence with exit code 1 or 2. Anything else is a finding: another error (exit code 70, or one that a
parser lets through), a crash, more than 10 seconds, more than 2 GB, a file outside the case's folder. Cases run in
processes of their own, so that a crash is one, and go on behind it.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
SECONDS, MEMORY = 10, 2 * 2**30
CHUNK = 500  # cases a process
SHAPE = (3, 16, 16)


def originals(folder: Path) -> None:
    """One sound file of every kind that is read."""
    import numpy as np
    import torch
    from nets import small
    from PIL import Image
    from safetensors.torch import save_file

    from zaq.cli import main
    from zaq.ir.capture import quiet

    folder.mkdir(parents=True, exist_ok=True)
    net, card = small(), {"input": SHAPE, "mean": [0.5] * 3, "std": [0.25] * 3, "classes": 3, "task": "classification"}
    with quiet():
        program = torch.export.export(net, (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.export.save(program, folder / "net.pt2")
        torch.onnx.export(
            net, (torch.zeros(2, *SHAPE),), folder / "net.onnx", dynamic_shapes=({0: "n"},), verbose=False
        )
    torch.save(net.state_dict(), folder / "net.pth")
    torch.save(net.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), folder / "weights.safetensors")
    for name in ("net", "weights", "old"):
        (folder / f"{name}.json").write_text(json.dumps(card))
    quick = ["--method", "rtn", "-o", str(folder / "run")]
    with contextlib.redirect_stdout(io.StringIO()):
        main(["quantize", str(folder / "net.pt2"), *quick], standalone_mode=False)
    (folder / "plan.yaml").write_text(
        "models: [net.pt2]\ndata: npz:set.npz\nbits: [w4a4, w8a8]\nseeds: 2\nlimit: 4\n"
        "runs:\n- methods: ['zaq[alpha=0]', {name: mine, method: rtn, settings: {batches: 2}}]\n- methods: rtn\n"
    )
    pixels, labels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8), np.arange(6) % 3
    np.savez(folder / "set.npz", images=pixels, labels=labels)
    csv, yolo, cifar = folder / "csv", folder / "yolo", folder / "cifar"
    for place in (csv, yolo / "images", yolo / "labels", cifar):
        place.mkdir(parents=True, exist_ok=True)
    for i in range(3):
        Image.fromarray(pixels[i]).save(csv / f"{i}.png")
        Image.fromarray(pixels[i]).save(yolo / "images" / f"{i}.png")
        (yolo / "labels" / f"{i}.txt").write_text(f"{i} 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.1\n")
    (csv / "labels.csv").write_text("file,label,split\n0.png,0,test\n1.png,1,test\n2.png,2,train\n")
    (yolo / "classes.txt").write_text("person\ncar\ndog, hound\n")
    (yolo / "decode.json").write_text(json.dumps({
        "kind": "ssd", "variances": [0.1, 0.2], "heads": [{"grid": [2, 2], "boxes": [[0.1, 0.1]]}], 
        "names": ["a", "car", "dog"],
    }))  # fmt: skip
    np.random.default_rng(0).integers(0, 3, (4, 3073)).astype(np.uint8).tofile(cifar / "test_batch.bin")


def command(*args: object) -> None:
    """The command line in this process. Raises what it would call unforeseen."""
    from click.testing import CliRunner

    from zaq.cli import UNFORESEEN, main

    done = CliRunner().invoke(main, ["--debug", *map(str, args)])
    if done.exit_code == UNFORESEEN or not (done.exception is None or isinstance(done.exception, SystemExit)):
        lines = done.output.strip().splitlines()
        told = next(
            (line.partition(" Please report")[0] for line in lines[::-1] if line.startswith("zaq: ")), lines[-1]
        )
        raise AssertionError(f"{done.output}\n{told}") from done.exception


def _change(path: Path, rng: random.Random) -> None:
    from mutate import damaged, other_archive, other_json

    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.8:
        content = other_json(content, rng)
    elif path.suffix in (".pt2", ".pth", ".npz") and rng.random() < 0.6:
        content = other_archive(content, rng)
    else:
        content = damaged(content, rng)
    path.write_bytes(content)


def model(name: str, *flags: str) -> Callable[[Path, random.Random], None]:
    def case(folder: Path, rng: random.Random) -> None:
        _change(folder / name, rng)
        command("inspect", folder / name, *flags)

    return case


def card(folder: Path, rng: random.Random) -> None:
    _change(folder / "weights.json", rng)
    command("inspect", folder / "weights.safetensors", "--arch", "nets:small")


def properties(folder: Path, rng: random.Random) -> None:
    """What an ONNX file says of itself beside its graph."""
    import onnx
    from mutate import other_json, other_text

    model = onnx.load(folder / "run" / "model.onnx")
    for entry in model.metadata_props:
        if rng.random() < 0.3:
            text = (
                other_json(entry.value.encode(), rng).decode() if rng.random() < 0.5 else other_text(entry.value, rng)
            )
            entry.value = text
    onnx.save(model, folder / "run" / "model.onnx")
    _read(folder, "model.onnx", rng)


# The verbs that read a part of a run's folder. An export takes a second: of a sound checkpoint it is made seldom.
READ_BY = {
    "options.json": ("verify", "verify", "export", "profile", "eval", "eval"),
    "samples.safetensors": ("verify",),
    "quantized.pt2": ("verify", "verify", "export", "profile"),
    "model.onnx": (*["verify", "eval", "eval of the file"] * 5, "profile"),
}


def run(folder: Path, rng: random.Random) -> None:
    """A run's folder, one of whose files is damaged, and a verb that reads it; no hash gives half of them away."""
    import onnx

    if rng.random() < 0.5:
        model = onnx.load(folder / "run" / "model.onnx")
        onnx.helper.set_model_props(model, {p.key: p.value for p in model.metadata_props if p.key != "zaq.parts"})
        onnx.save(model, folder / "run" / "model.onnx")
    name = rng.choice(["options.json", *READ_BY])
    _change(folder / "run" / name, rng)
    _read(folder, name, rng)


def _read(folder: Path, name: str, rng: random.Random) -> None:
    verb, _, of_file = rng.choice(READ_BY[name]).partition(" ")
    rest = {
        "export": ["--overwrite", "--format", rng.choice(("qdq", "packed", "float", "qoperator"))],
        "eval": ["--data", f"npz:{folder / 'set.npz'}"],
    }.get(verb, [])
    command(verb, folder / "run" / ("model.onnx" if of_file else ""), *rest)


def plan(folder: Path, rng: random.Random) -> None:
    from mutate import damaged, other_text

    path = folder / "plan.yaml"
    text = path.read_text()
    path.write_bytes(
        other_text(text, rng).encode(errors="ignore") if rng.random() < 0.8 else damaged(text.encode(), rng)
    )
    command("benchmark", path, "--dry-run", "-o", folder / "out")


def dataset(kind: str, *names: str) -> Callable[[Path, random.Random], None]:
    def case(folder: Path, rng: random.Random) -> None:
        from mutate import other_text

        path = folder / rng.choice(names)
        if path.suffix in (".csv", ".txt") and rng.random() < 0.6:
            path.write_text(other_text(path.read_text(), rng))
        else:
            _change(path, rng)
        where = f"{kind}:{folder / 'set.npz' if kind == 'npz' else folder / kind.removesuffix('10')}"
        flags = ["--task", "detection", "--decode", folder / "yolo/decode.json"] if kind == "yolo" else []
        command("eval", folder / "run", "--data", where, "--normalize", "unit", *flags)

    return case


def results(folder: Path, rng: random.Random) -> None:
    """The folder of a benchmark, one of whose results is damaged."""
    row = json.loads((HERE / "row.json").read_text())
    for i in range(2):
        cell = folder / "bench" / "cells" / str(i)
        cell.mkdir(parents=True, exist_ok=True)
        (cell / "result.json").write_text(json.dumps(row | {"seed": i}))
    (folder / "bench" / "benchmark.json").write_text(json.dumps({"command": "zaq benchmark", "plan": None}))
    _change(rng.choice([folder / "bench/cells/1/result.json", folder / "bench/benchmark.json"]), rng)
    command("benchmark", "--collect", "-o", folder / "bench")


def words(folder: Path, rng: random.Random) -> None:
    """What stands on a command line: bits, grids, constants, sizes, shapes."""
    from mutate import other_text

    from zaq.benchmark.plan import shard
    from zaq.cli.options import card_overrides, ends, method_of, size_in_bytes
    from zaq.config.bits import QConfig
    from zaq.config.card import Card
    from zaq.errors import ZaqError
    from zaq.methods import METHODS

    def said(text: str) -> str:  # seldom two at once: what is refused first hides the other
        return other_text(text, rng) if rng.random() < 0.3 else text

    kind = rng.randrange(6)
    try:
        if kind == 0:
            QConfig.parse(said("w4a4"), ends(said("8")), said("integer"), said("per_channel"), target=said("openvino"))
        elif kind == 1:
            QConfig.parse(said("mixeda6"), target_size=size_in_bytes(other_text("0.3MB", rng)))
        elif kind == 2:
            shard([], other_text("1/4", rng))
        elif kind == 3:
            Card().override(**card_overrides({
                "mean": said("0.5,0.5,0.5"), "std": said("0.2,0.2,0.2"), "input_shape": said("3,32,32"),
                "resize": rng.choice((None, 0, -1, 32, 2**70)), "normalize": rng.choice((None, None, said("cifar10"))),
            }))  # fmt: skip
        else:
            name = rng.choice(list(METHODS))
            method = METHODS[name]
            keys = [f.name for f in fields(method)]
            keys += [f"{part.__name__.lower()}.{f.name}" for part in method.parts for f in fields(part)]
            value = rng.choice(("1", "0.5", "-1", "0", "true", "none", "mse", "0.5,0.5"))
            method_of(name, (other_text(f"{rng.choice(keys)}={value}", rng),))
    except ZaqError:
        pass


ARCH = ("--arch", "nets:small")
TARGETS: dict[str, Callable[[Path, random.Random], None]] = {
    ".pt2": model("net.pt2"),
    ".pth": model("net.pth", *ARCH),
    ".pt": model("old.pt", *ARCH),
    ".onnx": model("net.onnx"),
    "safetensors": model("weights.safetensors", *ARCH),
    "card": card,
    "run": run,
    "properties": properties,
    "plan": plan,
    "csv": dataset("csv", "csv/labels.csv", "csv/0.png", "csv/labels.csv"),
    "yolo": dataset("yolo", "yolo/labels/0.txt", "yolo/classes.txt", "yolo/decode.json"),
    "npz": dataset("npz", "set.npz"),
    "cifar": dataset("cifar10", "cifar/test_batch.bin"),
    "results": results,
    "words": words,
}


class TooLong(BaseException):
    pass


def _too_long(*_: Any) -> None:
    raise TooLong


def one(seed: int, index: int, sound: Path, root: Path, only: str | None = None) -> str | None:
    """Run a case in a folder of its own; what is to be said against it."""
    rng = random.Random(f"{seed} {index}")
    name = only or list(TARGETS)[index % len(TARGETS)]
    case = root / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(sound, case)
    before, start = _outside(root), time.process_time()
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process's own: others may share the machine
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            TARGETS[name](case, rng)
        found = None
    except TooLong:
        found = f"more than {SECONDS} s\n{traceback.format_exc()}"
    except BaseException:
        found = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if time.process_time() - start > SECONDS and not found:
        found = f"{time.process_time() - start:.0f} s"
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY:
        found = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB"
    if _outside(root) != before:
        found = f"files outside its folder: {_outside(root) ^ before}"
    return f"{name}, case {index}: {found}" if found else None


def _outside(root: Path) -> set[str]:
    found = {str(p) for top in root.iterdir() if top.name != "case" for p in [top, *top.rglob("*")]}
    return {p for p in found if not p.endswith("/tmp/.ses")}  # onnxruntime's, once a process, wherever TMPDIR is


def cases(seed: int, numbers: range, sound: Path, only: str | None = None) -> Iterator[str]:
    """Run cases in this process; findings, and a line for each case that ended."""
    root = Path(tempfile.mkdtemp(dir=sound.parent))
    (root / "tmp").mkdir()
    shutil.copytree(sound, root / "case")
    for words in (("inspect", "net.onnx"), ("export", "run", "--overwrite"), ("verify", "run")):
        command(*words[:1], root / "case" / words[1], *words[2:])  # imports count against no case
    before = os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(root / "tmp")
    try:
        for index in numbers:
            found = one(seed, index, sound, root, only)
            yield json.dumps({"case": index, "found": found})
    finally:
        shutil.rmtree(root, ignore_errors=True)
        tempfile.tempdir = before
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before


def _worker(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30, soft))  # the machine is not this script's alone
    for line in cases(arguments.seed, range(*arguments.part), Path(arguments.sound), arguments.only):
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--only", choices=TARGETS, help="One target alone.")
    parser.add_argument("--case", type=int, help="One case alone, with its trace.")
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--sound", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        return _worker(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "sound"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            originals(sound)
        first = 0 if arguments.case is None else arguments.case
        sys.exit(_supervise(arguments, sound, first, arguments.cases if arguments.case is None else first + 1))


def _supervise(arguments: argparse.Namespace, sound: Path, at: int, end: int) -> int:
    """Hand cases to workers; count, print what they find. Returns the exit code."""
    start, done, kinds = time.monotonic(), 0, Counter[str]()
    while at < end:
        part = [str(at), str(min(at + CHUNK, end))]
        words = [sys.executable, __file__, "--seed", str(arguments.seed), "--sound", str(sound), "--part", *part]
        words += ["--only", arguments.only] if arguments.only else []
        out = subprocess.run(words, capture_output=True, text=True, errors="replace")
        lines = [json.loads(line) for line in out.stdout.splitlines() if line.startswith('{"case"')]
        for line in lines:
            done += 1
            if line["found"]:
                kinds[line["found"].strip().splitlines()[-1][:200]] += 1
                print(line["found"], flush=True)
        at += len(lines)
        if at < int(part[1]):
            kinds[f"crash (exit code {out.returncode})"] += 1
            print(f"case {at}: crash (exit code {out.returncode}): {out.stderr[-2000:]}", flush=True)
            done, at = done + 1, at + 1
    minutes = (time.monotonic() - start) / 60
    print(f"seed {arguments.seed}: {done} cases in {minutes:.1f} minutes, {sum(kinds.values())} findings")
    for kind, count in kinds.most_common():
        print(f"  {count} x {kind}")
    return 1 if kinds else 0


if __name__ == "__main__":
    main()
