"""Which architectures go all the way: torchvision's and timm's, with random weights, from the module to a verified
integer file.

    python benchmarks/coverage.py                             # the table; rows that are there already are not run again
    python benchmarks/coverage.py --only torchvision:resnet18 # of these alone, run again; --only timm: for all of a
    kind python benchmarks/coverage.py --method flagship --only torchvision:resnet18 ...

Each architecture runs in a process of its own: trace, fold, quantize (w8a8, round to nearest, which needs no training),
make the checkpoint (with `--method flagship`, also write it and read it back), export, verify.
`results/coverage/results.md` is the table, `results.json` and `results.csv` hold the same.

Tracing takes minutes where there are many blocks. Those of timm that only repeat are left out (`--whole` leaves them
in): two of each kind that follow one another stay, so that every operation and connection is there. torchvision's are
whole.

No weights are downloaded: they are random, of one seed. What an architecture starts at a constant (layer scales, the
last batch norm of a block, heads) is random too, else nothing would pass through it, and batch norms know the
statistics of a few batches of noise. So SQNR, the file against the float model on noise that no range was read from,
says whether the integers compute the network, not what a trained one loses: deep random networks amplify any noise. How
much stands beside it, the SQNR of the float model with nothing but its image rounded to 8 bits; and what rounding a
single tensor costs, the worst one, which does not depend on that.
"""

import argparse
import collections
import csv
import dataclasses
import gc
import io
import json
import math
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zaq.api import quantize_graph
from zaq.benchmark.cells import version
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.export.onnx import to_onnx
from zaq.export.program import program_of
from zaq.export.session import run_session, session
from zaq.ir.capture import from_exported, trace
from zaq.ir.nodes import activations, input_node
from zaq.ir.taps import with_taps
from zaq.methods import METHODS
from zaq.quantized import Learned
from zaq.report.outputs import sqnr
from zaq.run import Run, write_file
from zaq.sources.operators import define_missing_operators
from zaq.verify.kernels import kernels
from zaq.verify.layers import compare_layers
from zaq.verify.parity import compare

OUT = Path(__file__).parent / "results" / "coverage"
SEED = 0
SAMPLES = 8  # of noise, on which file, checkpoint and float model are compared
NORM_BATCHES = 4
LAYER_SAMPLES = 2  # of those, for the comparison with integer arithmetic, which is slow
HEAD = (
    "architecture", "px", "method", "operations", "layers", "computes in float", "equal", "tensors", "SQNR, dB",
    "image alone",
    "worst tensor", "s", "MB", "made by",
)  # fmt: skip
# Side of the input in pixels: as small as the architecture allows.
ARCHITECTURES = {
    "torchvision": {
        "resnet18": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "squeezenet1_1": 64, "shufflenet_v2_x1_0": 64,
        "swin_t": 64,
        "convnext_tiny": 64, "regnet_y_400mf": 64, "efficientnet_b0": 64, "resnet50": 64, "densenet121": 64,
        "inception_v3": 96,
        "vgg11": 64, "alexnet": 224, "googlenet": 64, "mnasnet1_0": 64, "mobilenet_v3_large": 64, "regnet_x_400mf": 64,
        "vit_b_16": 32,
        "resnext50_32x4d": 64, "efficientnet_v2_s": 64, "swin_v2_t": 64,
        "lraspp_mobilenet_v3_large": 64,
    },
    "timm": {
        "vit_tiny_patch16_224": 64, "deit_tiny_patch16_224": 64, "mixer_s32_224": 224, "convnextv2_atto": 64,
        "lcnet_050": 64,
        "poolformer_s12": 64, "seresnet18": 64, "resnest14d": 64, "repvgg_a0": 64, "mobileone_s0": 64,
        "mobilenetv4_conv_small": 64,
        "dla34": 64, "skresnet18": 64, "starnet_s1": 64, "resmlp_12_224": 224, "ese_vovnet19b_dw": 64,
        "inception_next_atto": 64,
        "deit3_small_patch16_224": 64, "edgenext_xx_small": 64, "mobilevit_xxs": 64, "pvt_v2_b0": 64, "levit_128s": 224,
        "efficientformer_l1": 224, "ecaresnet26t": 64, "repvit_m0_9": 64, "efficientvit_b0": 64, "ghostnet_100": 64,
        "mixnet_s": 64,
        "rexnet_100": 64, "hardcorenas_a": 64, "fastvit_t8": 64, "convmixer_768_32": 64, "gmlp_ti16_224": 224,
        "coatnet_pico_rw_224": 224, "xcit_nano_12_p16_224": 64,
        "selecsls42b": 64, "res2net50_26w_4s": 64, "dpn48b": 64, "nf_regnet_b0": 64, "focalnet_tiny_srf": 64,
        "cspresnet50": 64,
        "cait_xxs24_224": 64, "xception41": 64, "regnetz_b16": 64, "hrnet_w18_small": 64,
        "twins_svt_small": 224, "beit_base_patch16_224": 64, "tf_efficientnetv2_b0": 64, "mambaout_femto": 64,
        "hgnetv2_b0": 64, "davit_tiny": 64, "eva02_tiny_patch14_224": 56, "pit_ti_224": 224, "nextvit_small": 64,
        "botnet26t_256": 256, "swiftformer_xs": 224,
    },
}  # fmt: skip


@dataclass
class Row:
    """What became of one architecture. Where it did not go all the way: the stage, and the sentence of its failure."""

    name: str
    settings: dict[str, Any]
    stage: str = "start"  # "done" at the end
    failure: str = ""
    operations: int = 0
    layers: int = 0  # quantized convolutions and linear layers, and products of two activations
    kernels: dict[str, int] = field(default_factory=dict)
    in_float: dict[str, int] = field(default_factory=dict)  # of the file, as `zaq verify` finds them
    unfolded: int = 0  # batch norms that fold into no layer
    sqnr: float | None = None  # of the file's output against the float model
    image: float | None = None  # of the float model's output with nothing but the image rounded to 8 bits
    worst: float | None = None  # of the tensor that its grid holds worst, and which one that is
    worst_tensor: str = ""
    equal: float | None = None  # shares of the outputs' elements, file against checkpoint
    worse: float | None = None
    tensors: str = ""  # equal to integer arithmetic in every element, of all quantized ones
    seconds: float = 0.0
    peak_mb: int = 0
    version: str = ""  # of zaq, which made the row; nothing in rows from before this was noted


def build(name: str, size: int, cut_blocks: bool) -> nn.Module:
    """An architecture with random weights, in eval mode."""
    library, _, arch = name.partition(":")
    if library == "torchvision":
        define_missing_operators()
        from torchvision import models

        extra = (
            {"image_size": size}
            if arch.startswith("vit")
            else {"aux_logits": False}
            if arch in ("googlenet", "inception_v3")
            else {"weights_backbone": None}
            if arch.startswith("lraspp")
            else {}
        )
        model: nn.Module = models.get_model(arch, weights=None, **extra)
    else:
        import timm

        try:
            model = timm.create_model(arch, pretrained=False, img_size=size)
        except TypeError:  # takes any size
            model = timm.create_model(arch, pretrained=False)
    if cut_blocks:
        cut(model)
    return with_history(model, size).eval()


def cut(model: nn.Module) -> None:
    """Leave two (in place) of any more blocks that follow one another in a chain and are alike: same class, same
    shapes.
    """
    for chain in [
        m for m in model.modules() if type(m) is nn.Sequential
    ]:  # not those that collect what each block writes
        kinds = [(type(block), [(k, v.shape) for k, v in block.state_dict().items()]) for block in chain]
        kept = [
            block
            for i, block in enumerate(chain)
            if i < 2 or not kinds[i][1] or not kinds[i] == kinds[i - 1] == kinds[i - 2]
        ]
        if len(kept) < len(chain):
            del chain[len(kept) :]
            for i, block in enumerate(kept):
                chain[i] = block


@torch.no_grad()
def with_history(model: nn.Module, size: int) -> nn.Module:
    """The same model (in place) as if it had been trained a little: nothing constant, statistics in its batch norms."""
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            norm = parameter.dim() == 1 and bool(parameter[0] != 0)
            parameter.uniform_(0.5, 1.5) if norm else parameter.normal_(0.0, 0.1 if parameter.dim() == 1 else 0.02)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    for norm_layer in norms:
        norm_layer.train().momentum = None  # the mean over the batches below
        norm_layer.reset_running_stats()
    for _ in range(NORM_BATCHES if norms else 0):
        model(torch.randn(SAMPLES, 3, size, size))
    return model


def measure(row: Row, size: int, done: Callable[[], None]) -> None:
    """Take one architecture as far as it goes, and note in `row` how it went; `done` is called behind every stage."""

    def at(stage: str) -> None:
        row.stage = stage
        done()

    at("build")
    torch.manual_seed(SEED)
    model = build(row.name, size, row.settings["cut"])
    at("trace")
    graph = trace(model, torch.zeros(2, 3, size, size))
    row.operations = sum("aten" in str(n.target) and "sym_" not in str(n.target) for n in activations(graph))
    at("quantize")
    card = Card(mean=(0.5,) * 3, std=(0.25,) * 3)
    settings, method = row.settings, METHODS[row.settings["method"]]
    quantized = quantize_graph(
        graph, QConfig.parse(settings["bits"]), method(**settings["constants"]), card=card, effort="fast", seed=SEED
    )
    row.layers = len(quantized.student.placement.layers) + sum(
        "matmul" in str(n.target) for n in quantized.teacher.graph.nodes
    )
    row.unfolded = sum("batch norm" in note or "stays a float" in note for note in quantized.journal.notes)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        at("checkpoint")
        exported = program_of(quantized.module)
        if settings["method"] == "rtn":
            checkpoint = from_exported(exported)
        else:  # to disk and back takes longest of all
            run.write_program("quantized.pt2", exported)
            checkpoint = run.student()
        at("export")
        run.write("model.onnx", to_onnx(exported, {}))
        at("verify")
        samples = quantized.task.card.in_bounds(
            torch.randn(SAMPLES, 3, size, size, generator=torch.Generator().manual_seed(SEED + 1))
        )
        parity = compare(run / "model.onnx", checkpoint, samples.split(SAMPLES - 1))  # two batches, of two sizes
        row.equal, row.worse, row.kernels = parity.share_equal, parity.share_worse, parity.kernels
        row.in_float = dict(collections.Counter(n.op for n in kernels(run / "model.onnx").in_float).most_common())
        found = run_session(session(run / "model.onnx"), samples)[0]
        with torch.no_grad():
            expected, image = _first(model(samples)), quantized.student.placement.activations[input_node(graph).name]
            row.sqnr, row.image = sqnr(expected, torch.from_numpy(found)), sqnr(expected, _first(model(image(samples))))
        row.worst, row.worst_tensor = min(zip(*_each_tensor(quantized, samples), strict=True))
        at("layers")
        layers, _ = compare_layers(run / "model.onnx", checkpoint, samples[:LAYER_SAMPLES])
        row.tensors = f"{sum(x.file.equal == 1 for x in layers)}/{len(layers)}"
    at("done")


@torch.no_grad()
def _each_tensor(quantized: Learned, samples: Tensor) -> tuple[list[float], list[str]]:
    """SQNR of rounding each activation of the float model to its grid, alone; and their names."""
    names = [n for n in quantized.student.placement.activations if n != input_node(quantized.teacher).name]
    values = with_taps(quantized.teacher, names)(samples)[1]
    found = [sqnr(v, quantized.student.placement.activations[n](v)) for n, v in zip(names, values, strict=True)]
    return [-math.inf if x is None else x for x in found], names


def _first(outputs: Any) -> Tensor:
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    return outputs


def worker(row: Row, path: Path) -> None:
    """The process of one architecture: writes the row as far as it has come behind every stage."""
    started = time.monotonic()

    def say() -> None:
        row.seconds = round(time.monotonic() - started, 1)
        row.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        write_file(path, json.dumps(dataclasses.asdict(row)))

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.disable()  # a third of the time, of what makes so many small objects
    try:
        measure(row, row.settings["size"], say)
    except Exception as error:
        row.failure = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        say()


def run_one(row: Row, timeout: float) -> Row:
    """The row as its process left it; what ended that process too early is a failure like any other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        process = multiprocessing.get_context("fork").Process(
            target=worker, args=(row, path)
        )  # what is imported here is imported there
        process.start()
        process.join(timeout)
        code = process.exitcode
        process.kill()
        process.join()
        found = Row(**json.loads(path.read_text())) if path.is_file() else row
    if found.stage != "done" and not found.failure:
        found.failure = f"not done after {timeout:.0f} s" if code is None else f"its process ended with {code}"
    return found


def write(rows: list[Row]) -> None:
    """The table in its three forms."""
    OUT.mkdir(parents=True, exist_ok=True)
    write_file(OUT / "results.json", json.dumps([dataclasses.asdict(r) for r in rows], indent=1) + "\n")
    text = io.StringIO()
    table = csv.DictWriter(text, [f.name for f in dataclasses.fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows(
        {k: json.dumps(v) if isinstance(v, dict) else v for k, v in dataclasses.asdict(r).items()} for r in rows
    )
    write_file(OUT / "results.csv", text.getvalue())
    write_file(OUT / "results.md", markdown(rows))


def markdown(rows: list[Row]) -> str:
    """What went all the way, what did not and why, and a row an architecture."""
    done = [r for r in rows if r.stage == "done"]
    sure = sorted(r.sqnr for r in done if r.sqnr is not None)
    lines = [
        "# Coverage",
        "",
        f"{len(done)} of {len(rows)} runs went all the way"
        + (f"; SQNR from {sure[0]:.1f} dB, {sure[len(sure) // 2]:.1f} in the median." if sure else "."),
        "`python benchmarks/coverage.py` says how; equal: elements of the output, file against checkpoint; tensors: "
        "of all quantized",
        "ones, those that equal integer arithmetic in every element.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---" * len(HEAD) + "|",
    ]
    for r in rows:
        name, method = r.name + " (cut)" * r.settings["cut"], f"{r.settings['method']} {r.settings['bits']}"
        cells = [name, r.settings["size"], method, r.operations, r.layers]
        if r.stage == "done":
            floats = ", ".join(f"{n} {k}" for k, n in r.in_float.items()) or "nothing"
            cells += [
                floats,
                f"{100 * (r.equal or 0):.2f} %",
                r.tensors,
                r.sqnr,
                r.image,
                f"{r.worst} {r.worst_tensor}",
            ]
        else:
            cells += [f"**{r.stage}**: {r.failure.replace('|', '/')}", *[""] * 5]
        lines.append(
            "| " + " | ".join(map(str, [*cells, f"{r.seconds:.0f}", r.peak_mb, r.version or "an older zaq"])) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="architectures that begin so, run again")
    parser.add_argument("--method", default="rtn", choices=("rtn", "flagship"), help="flagship: with few steps")
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--whole", action="store_true", help="with blocks that only repeat")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one architecture")
    arguments = parser.parse_args()
    define_missing_operators()
    few = (
        {"synthesis": 2, "images": 8, "reconstruct": 2, "polish": 0, "game": 0}
        if arguments.method == "flagship"
        else {}
    )
    path = OUT / "results.json"
    rows = [Row(**r) for r in json.loads(path.read_text())] if path.is_file() else []
    cases = [(f"{library}:{arch}", size) for library, archs in ARCHITECTURES.items() for arch, size in archs.items()]
    for number, (name, size) in enumerate(cases, 1):
        settings = {"size": size, "bits": arguments.bits, "method": arguments.method, "constants": few, "seed": SEED}
        settings["cut"] = name.startswith("timm") and not arguments.whole
        known = next((i for i, r in enumerate(rows) if r.name == name and r.settings == settings), None)
        if not any(name.startswith(o) for o in arguments.only) if arguments.only else known is not None:
            continue
        print(f"{number}/{len(cases)} {name} ...", end=" ", flush=True)
        row = run_one(Row(name, settings, version=version()), arguments.timeout)
        print(
            f"{row.seconds:.0f} s, " + (f"{row.sqnr} dB" if row.stage == "done" else f"{row.stage}: {row.failure}"),
            flush=True,
        )
        rows = [r for i, r in enumerate(rows) if i != known] + [row]
        order = [n for n, _ in cases]
        rows.sort(key=lambda r: (r.settings["method"] != "rtn", order.index(r.name) if r.name in order else len(order)))
        write(rows)


if __name__ == "__main__":
    main()
