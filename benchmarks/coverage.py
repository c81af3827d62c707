"""Which architectures go all the way: torchvision's and timm's, with random weights, from the module to a verified integer file.

    python benchmarks/coverage.py                             # the table; rows that are there already are not run again
    python benchmarks/coverage.py --only torchvision:resnet18 # of these alone, run again; --only timm: for all of a kind
    python benchmarks/coverage.py --method flagship --only torchvision:resnet18 ...

Each architecture runs in a process of its own: trace, fold, quantize (w8a8, round to nearest, which needs no training),
save the checkpoint and read it back, export, verify. `results/coverage/results.md` is the table, `results.json` and
`results.csv` hold the same.

No weights are downloaded: they are random, of one seed. What an architecture starts at a constant (layer scales, the last
batch norm of a block, heads) is random too, else nothing would pass through it, and batch norms know the statistics of a
few batches of noise. So SQNR, the file against the float model on noise that no range was read from, says whether the
integers compute the network, not what a trained one loses.
"""

import argparse
import collections
import csv
import dataclasses
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OUT = Path(__file__).parent / "results" / "coverage"
SEED = 0
SAMPLES = 8  # of noise, on which file, checkpoint and float model are compared
NORM_BATCHES = 4
LAYER_SAMPLES = 2  # of those, for the comparison with integer arithmetic, which is slow
# Side of the input in pixels: as small as the architecture allows.
ARCHITECTURES = {
    "torchvision": {
        "alexnet": 224, "vgg11": 64, "vgg16_bn": 64, "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64,
        "mobilenet_v2": 64, "mobilenet_v3_small": 64, "mobilenet_v3_large": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
        "regnet_x_400mf": 64, "regnet_y_400mf": 64, "densenet121": 64, "convnext_tiny": 64, "shufflenet_v2_x1_0": 64,
        "inception_v3": 96, "googlenet": 64, "squeezenet1_1": 64, "mnasnet1_0": 64, "vit_b_16": 32, "swin_t": 64, "swin_v2_t": 64,
        "maxvit_t": 224,
    },
    "timm": {
        "vit_tiny_patch16_224": 64, "deit_tiny_patch16_224": 64, "deit3_small_patch16_224": 64, "swin_tiny_patch4_window7_224": 224,
        "beit_base_patch16_224": 64, "cait_xxs24_224": 64, "xcit_nano_12_p16_224": 64, "mixer_s32_224": 224, "gmlp_ti16_224": 224,
        "resmlp_12_224": 224, "convmixer_768_32": 64, "poolformer_s12": 64, "pvt_v2_b0": 64, "twins_svt_small": 224,
        "levit_128s": 224, "mobilevit_xxs": 64, "edgenext_xx_small": 64, "efficientformer_l1": 224, "coatnet_pico_rw_224": 224,
        "convnextv2_atto": 64, "resnest14d": 64, "seresnet18": 64, "ecaresnet26t": 64, "skresnet18": 64, "res2net50_26w_4s": 64,
        "ghostnet_100": 64, "repvgg_a0": 64, "mobileone_s0": 64, "mobilenetv4_conv_small": 64, "lcnet_050": 64, "mixnet_s": 64,
        "rexnet_100": 64, "hardcorenas_a": 64, "dla34": 64, "hrnet_w18_small": 64, "dpn48b": 64, "cspresnet50": 64,
        "ese_vovnet19b_dw": 64, "nf_regnet_b0": 64, "xception41": 64, "inception_next_atto": 64, "fastvit_t8": 64,
        "efficientvit_b0": 64, "repvit_m0_9": 64, "starnet_s1": 64, "focalnet_tiny_srf": 64, "regnetz_b16": 64, "selecsls42b": 64,
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
    sqnr: float | None = None
    equal: float | None = None  # shares of the outputs' elements, file against checkpoint
    worse: float | None = None
    tensors: str = ""  # equal to integer arithmetic in every element, of all quantized ones
    seconds: float = 0.0
    peak_mb: int = 0


def build(name: str, size: int) -> nn.Module:
    """An architecture with random weights, in eval mode."""
    library, _, arch = name.partition(":")
    if library == "torchvision":
        models = _torchvision().models
        extra = {"image_size": size} if arch.startswith("vit") else {"aux_logits": False} if arch in ("googlenet", "inception_v3") else {}
        model: nn.Module = models.get_model(arch, weights=None, **extra)
    else:
        _torchvision()
        import timm

        try:
            model = timm.create_model(arch, pretrained=False, img_size=size)
        except TypeError:  # takes any size
            model = timm.create_model(arch, pretrained=False)
    return with_history(model, size).eval()


def _torchvision() -> Any:
    """torchvision; where its binary was built for another torch, with the operators that its import misses."""
    try:
        import torchvision
    except RuntimeError:
        sys.modules.pop("torchvision", None)
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
        from torchvision_shim import define_missing_operators  # type: ignore[import-not-found]

        define_missing_operators()
        import torchvision
    return torchvision


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
    from zaq.api import quantize_graph
    from zaq.config import Card, QConfig
    from zaq.export.kernels import kernels
    from zaq.export.layers import compare_layers
    from zaq.export.onnx import to_onnx
    from zaq.export.program import program_of
    from zaq.export.session import run_session, session
    from zaq.export.verify import compare
    from zaq.graph import activations, trace
    from zaq.methods import METHODS
    from zaq.report import sqnr
    from zaq.run import Run

    def at(stage: str) -> None:
        row.stage = stage
        done()

    at("build")
    torch.manual_seed(SEED)
    model = build(row.name, size)
    at("trace")
    graph = trace(model, torch.zeros(2, 3, size, size))
    row.operations = sum("aten" in str(n.target) and "sym_" not in str(n.target) for n in activations(graph))
    at("quantize")
    card = Card(mean=(0.5,) * 3, std=(0.25,) * 3)
    settings, method = row.settings, METHODS[row.settings["method"]]
    quantized = quantize_graph(graph, QConfig.parse(settings["bits"]), method(**settings["constants"]), card=card, effort="fast", seed=SEED)
    row.layers = len(quantized.job.placement.layers) + sum("matmul" in str(n.target) for n in quantized.teacher.graph.nodes)
    row.unfolded = sum("batch norm" in note or "stays a float" in note for note in quantized.job.notes)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        at("checkpoint")
        exported = program_of(quantized.module)
        run.write_checkpoint(exported)
        checkpoint = run.student()
        at("export")
        run.write("model.onnx", to_onnx(exported, {}))
        at("verify")
        samples = quantized.job.in_bounds(torch.randn(SAMPLES, 3, size, size, generator=torch.Generator().manual_seed(SEED + 1)))
        parity = compare(run / "model.onnx", checkpoint, samples.split(SAMPLES - 1))  # two batches, of two sizes
        row.equal, row.worse, row.kernels = parity.share_equal, parity.share_worse, parity.kernels
        row.in_float = dict(collections.Counter(n.op for n in kernels(run / "model.onnx").in_float).most_common())
        found = run_session(session(run / "model.onnx"), samples)[0]
        with torch.no_grad():
            row.sqnr = sqnr(_first(model(samples)), torch.from_numpy(found))
        at("layers")
        layers, _ = compare_layers(run / "model.onnx", checkpoint, samples[:LAYER_SAMPLES])
        row.tensors = f"{sum(x.file.equal == 1 for x in layers)}/{len(layers)}"
    at("done")


def _first(outputs: Any) -> Tensor:
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    return outputs


def worker(text: str) -> None:
    """The process of one architecture: a row as JSON goes in, and a line of it comes out behind every stage."""
    row = Row(**json.loads(text))
    started = time.monotonic()

    def say() -> None:
        row.seconds = round(time.monotonic() - started, 1)
        row.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(dataclasses.asdict(row)), flush=True)

    try:
        measure(row, row.settings["size"], say)
    except Exception as error:
        row.failure = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        say()


def run_one(row: Row, timeout: float) -> Row:
    """The row as its process left it; what ended that process too early is a failure like any other."""
    command = [sys.executable, "-W", "ignore", __file__, "--worker", json.dumps(dataclasses.asdict(row))]
    with tempfile.TemporaryFile("w+") as out:
        try:
            code: int | None = subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            code = None
        out.seek(0)
        lines = [line for line in out if line.startswith("{")]
    found = Row(**json.loads(lines[-1])) if lines else row
    if found.stage != "done" and not found.failure:
        found.failure = f"not done after {timeout:.0f} s" if code is None else f"its process ended with {code}"
    return found


def write(rows: list[Row]) -> None:
    """The table in its three forms."""
    OUT.mkdir(parents=True, exist_ok=True)
    _replace("results.json", json.dumps([dataclasses.asdict(r) for r in rows], indent=1) + "\n")
    text = io.StringIO()
    table = csv.DictWriter(text, [f.name for f in dataclasses.fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows({k: json.dumps(v) if isinstance(v, dict) else v for k, v in dataclasses.asdict(r).items()} for r in rows)
    _replace("results.csv", text.getvalue())
    _replace("results.md", markdown(rows))


def _replace(name: str, text: str) -> None:
    partial = OUT / f".{name}.partial"
    partial.write_text(text)
    partial.replace(OUT / name)


def markdown(rows: list[Row]) -> str:
    """What went all the way, what did not and why, and a row an architecture."""
    done = [r for r in rows if r.stage == "done"]
    sure = sorted(r.sqnr for r in done if r.sqnr is not None)
    lines = [
        "# Coverage",
        "",
        f"{len(done)} of {len(rows)} runs went all the way"
        + (f"; SQNR from {sure[0]:.1f} dB, {sure[len(sure) // 2]:.1f} in the median." if sure else "."),
        "`python benchmarks/coverage.py` says how; equal: elements of the output, file against checkpoint; tensors: of all quantized",
        "ones, those that equal integer arithmetic in every element.",
        "",
        "| architecture | px | method | operations | layers | computes in float | equal | tensors | SQNR, dB | s | MB |",
        "|---" * 11 + "|",
    ]
    for r in rows:
        floats = ", ".join(f"{n} {k}" for k, n in r.in_float.items()) or "nothing"
        end = f"**{r.stage}**: {r.failure.replace('|', '/')} | | | "
        if r.stage == "done":
            end = f"{floats} | {100 * (r.equal or 0):.2f} % | {r.tensors} | {r.sqnr}"
        method = " ".join([r.settings["method"], r.settings["bits"]])
        lines.append(
            f"| {r.name} | {r.settings['size']} | {method} | {r.operations} | {r.layers} | {end} | {r.seconds:.0f} | {r.peak_mb} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="architectures that begin so, run again")
    parser.add_argument("--method", default="rtn", choices=("rtn", "flagship"), help="flagship: with few steps")
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one architecture")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    few = {"synthesis": 2, "batches": 1, "reconstruct": 2, "polish": 0, "game": 0} if arguments.method == "flagship" else {}
    path = OUT / "results.json"
    rows = [Row(**r) for r in json.loads(path.read_text())] if path.is_file() else []
    cases = [(f"{library}:{arch}", size) for library, archs in ARCHITECTURES.items() for arch, size in archs.items()]
    for number, (name, size) in enumerate(cases, 1):
        settings = {"size": size, "bits": arguments.bits, "method": arguments.method, "constants": few, "seed": SEED}
        known = next((i for i, r in enumerate(rows) if r.name == name and r.settings == settings), None)
        if not any(name.startswith(o) for o in arguments.only) if arguments.only else known is not None:
            continue
        print(f"{number}/{len(cases)} {name} ...", end=" ", flush=True)
        row = run_one(Row(name, settings), arguments.timeout)
        print(f"{row.seconds:.0f} s, " + (f"{row.sqnr} dB" if row.stage == "done" else f"{row.stage}: {row.failure}"), flush=True)
        rows = [r for i, r in enumerate(rows) if i != known] + [row]
        order = [n for n, _ in cases]
        rows.sort(key=lambda r: (r.settings["method"] != "rtn", order.index(r.name) if r.name in order else len(order)))
        write(rows)


if __name__ == "__main__":
    main()
