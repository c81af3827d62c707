"""`zaq quantize`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from zaq.cli.command import Command, config_option, said_in_config
from zaq.cli.kinds import DATA, METHODS, PRECISIONS, SOURCE, TARGETS, Choice, Spelled
from zaq.cli.options import (
    PATH,
    MethodOption,
    Seconds,
    device_option,
    ends,
    layer_options,
    layers_of,
    load_source,
    method_of,
    progress,
    runs_code,
    size_in_bytes,
    source_options,
    talk_options,
)
from zaq.config.bits import ACTIVATION_GRIDS, EFFORTS, LATENCY, PLACEMENTS, STORED, WEIGHT_GRIDS
from zaq.config.bounds import json_text
from zaq.errors import Interrupted, RunError, SourceError, UserError

if TYPE_CHECKING:
    from zaq.config.bits import QConfig
    from zaq.engine.progress import Progress
    from zaq.engine.work import Work
    from zaq.sources import Source

__all__ = ["quantize"]

# What does not change what comes out.
NOT_ASKED = ("output", "overwrite", "resume", "every", "memory", "dry_run", "as_json", "level")
NAMES_CODE = ("source", "arch", "method", "settings")
AGAIN = "zaq.resumed"  # whether options were read from the run that is resumed


GROUPS = {
    "What is quantized": ("arch", "kwargs", "bind", "dynamic", "layout", "random_weights", "labels"),
    "How its images are prepared": ("normalize", "mean", "std", "input_shape", "resize", "crop"),
    "Bits": (
        "bits", "layer_bits", "exclude", "first_last", "depthwise", "target_size", "target", "placement",
        "weights", "activations",
    ),
    "Method": ("method", "settings", "effort", "seed", "samples", "generator", "proxy", "data"),
    "The run": ("output", "overwrite", "resume", "every", "config", "dry_run", "as_json", "level"),
    "The machine": ("device", "precision", "devices", "num_nodes", "threads", "memory", "optimize"),
}  # fmt: skip
EXAMPLES = {
    "zaq quantize timm:resnet18 --bits int8": "8 bits, of a network and its weights in timm",
    "zaq quantize net.onnx --normalize imagenet": "w4a4, of a float ONNX file",
    "zaq quantize net.pt2 --bits 4 --exclude head": "the module `head` stays in float",
    "zaq quantize net.pt2 --layer-bits 'layer4=8'": "`layer4` has 8 bits, all else 4",
    "zaq quantize --config out/options.json -o again/": "the same run once more",
}


@click.command(cls=Command, groups=GROUPS, examples=EXAMPLES)
@click.argument("source", default="zoo:resnet20_cifar10", type=SOURCE)
@click.option(
    "--bits",
    default="w4a4",
    show_default=True,
    help="Bits of weights and activations, w2a2 to w8a8; 8 or int8: w8a8; w4.0a4: 4 on average; or mixed.",
)
@layer_options
@click.option("--target-size", help="With --bits mixed: bytes that all weights may take, as 0.3MB.")
@click.option(
    "--placement",
    type=Choice(list(PLACEMENTS)),
    default="integer",
    show_default=True,
    help="What is quantized: integer; shared; a protocol: gdfq, brecq.",
)
@click.option(
    "--weights",
    type=Choice(WEIGHT_GRIDS),
    metavar="GRID",
    help="Grids of weights: per_channel (default), per_tensor, and both with _affine.",
)
@click.option(
    "--activations",
    type=Choice(ACTIVATION_GRIDS),
    metavar="GRID",
    help="Grids of activations: affine (default), or symmetric: signed, zero point 0.",
)
@click.option(
    "--target",
    type=Spelled(TARGETS),
    default="onnxruntime",
    show_default=True,
    help="The runtime the file is for: tensorrt, openvino, qnn, ...",
)
@click.option("--first-last", default="", help="Bits of the first and the last layer, or 'same'; 8, and same for gdfq.")
@click.option(
    "--depthwise",
    type=click.IntRange(2, 8),
    help="Bits of depthwise convolutions and what they read; 8 saves most of what mobile networks lose at w4a4.",
)
@click.option(
    "--method",
    cls=MethodOption,
    type=Spelled(METHODS),
    default="flagship",
    show_default=True,
    help="or package.module:Class; zaq methods says more",
)
@click.option("-s", "settings", multiple=True, metavar="KEY=VALUE", help="A constant of the method; repeatable.")
@click.option("--effort", type=Choice(EFFORTS), default="default", show_default=True, help="How long it may take.")
@click.option("--data", type=DATA, help="Real training images, for --method ft alone: cifar10:DIR, ...")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="The same seed repeats a CPU run bit for bit, with the same number of threads.",
)
@device_option
@click.option(
    "--precision",
    type=Choice(PRECISIONS),
    default="32-true",
    show_default=True,
    help="Of the networks' products while the student learns: 32-true, bf16-mixed, 16-mixed.",
)
@click.option(
    "--devices",
    type=click.IntRange(1, 2**10),
    default=1,
    show_default=True,
    help="Processes that share every batch, on a device each.",
)
@click.option(
    "--num-nodes",
    type=click.IntRange(1, 2**10),
    default=1,
    show_default=True,
    help="Machines that have so many processes each; the command is started on all of them.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Of torch; another number gives another student.")
@click.option("--memory", help="Images and features kept in memory, as 2G; others lie in files. Half of what is free.")
@click.option(
    "--optimize",
    type=Choice([LATENCY]),
    help="latency: layers that integers make slower on this machine compute in float; their weights are stored in 8 "
    "bits.",
)
@click.option("--samples", metavar="RUN", help="Learn from the images of a run of the same model, which draws none.")
@click.option("--generator", metavar="FILE", help="Begin synthesis with a file of zaq cocktail, or a RUN's generator.")
@click.option(
    "--proxy",
    metavar="DIR",
    help="Photographs of anything to learn from, moved to the model's statistics; not data-free.",
)
@click.option("-o", "--output", type=PATH, help="Folder for the run; <model>-<bits> by default.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there, once the new one is whole.")
@click.option("--resume", type=PATH, metavar="RUN", help="Go on with a run that was broken off; it knows its options.")
@click.option("--snapshot", "every", type=Seconds(), default="60s", show_default=True, help="How often it is saved.")
@click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@config_option
@talk_options
@source_options
def quantize(source: str, bits: str, layer_bits: tuple[str, ...], exclude: tuple[str, ...], depthwise: int | None,
             target_size: str | None, placement: str, weights: str | None,
             activations: str | None, target: str, first_last: str, method: str,
             settings: tuple[str, ...], effort: str, data: str | None, seed: int, device: str,
             precision: str, devices: int, num_nodes: int, threads: int | None,
             memory: str | None, optimize: str | None, samples: str | None, generator: str | None,
             proxy: str | None,
             output: Path | None, overwrite: bool, resume: Path | None, every: float, dry_run: bool, as_json: bool,
             level: str, **flags: Any) -> None:  # fmt: skip
    """Quantize SOURCE; the shipped CIFAR-10 ResNet-20 if none is named.

    SOURCE: a .pt2 or .onnx file; .safetensors, .pt or .pth weights with --arch; timm:NAME, torchvision:NAME,
    hf-hub:OWNER/NAME; package.module:factory; zoo:NAME.
    """
    from zaq.config.bits import QConfig
    from zaq.config.memory import allowed
    from zaq.config.names import missing, name_of, require_method, require_proxy

    if resume and output not in (None, resume):
        raise UserError(f"--resume {resume}: the run goes on where it is; -o {output} beside it cannot be.")
    if resume is not None and not (context := click.get_current_context()).meta.get(AGAIN):
        context.invoke(quantize, **_as_begun(context, resume))
        return
    if samples and generator:
        raise UserError(
            f"--samples {samples} and --generator {generator}: a run that takes images draws none; say one."
        )
    if generator and proxy:
        raise UserError(f"--generator {generator} and --proxy {proxy}: a run on photographs draws none; say one.")
    if generator and not Path(generator).exists():
        raise SourceError("--generator " + missing(Path(generator)))
    _require_no_code_in_config(click.get_current_context())
    qconfig = QConfig.parse(
        bits, ends(first_last), placement, weights, size_in_bytes(target_size), activations, target, depthwise,
        layers_of(layer_bits, exclude),
    )  # fmt: skip
    require_method(method)
    if proxy is not None:
        require_proxy(proxy, method, samples)
    kept, folder = allowed(memory), resume or output or Path(f"{name_of(source)}-{qconfig}")
    shown = progress(level)
    shown.say(f"{source} to {qconfig} by {method}, effort {effort}, device {device}, into {folder}/")

    import torch  # from here on it takes seconds

    from zaq.compute.devices import device_named
    from zaq.compute.processes import is_first, launch
    from zaq.engine.work import Work
    from zaq.pipeline import Keeping, quantize_run

    algorithm = method_of(method, settings)
    if algorithm.reads_data != (data is not None):
        raise UserError(
            f"--method {method} "
            + ("reads real images: name them with --data." if data is None else "reads no data; only ft does.")
        )
    work = Work(device_named(device), precision)
    model = load_source(source, flags)
    if dry_run:
        from zaq.report.inspect import describe_model

        click.echo(describe_model(model, qconfig))
        click.echo(f"\nwould run {algorithm}\nwith effort {effort}, seed {seed}, {_where(work)}, into {folder}{'/'}")
        click.echo(f"and keep at most {kept / 2**20:.0f} MiB of images and features in memory")
        return
    if devices * num_nodes > 1:
        work = Work(launch(work.device, devices, num_nodes), precision)
    if threads is not None:
        torch.set_num_threads(threads)
    call = {k: v for k, v in click.get_current_context().params.items() if k not in NOT_ASKED}
    if optimize:
        model, qconfig, call = _placed(model, qconfig, call, shown)
    keeping = Keeping(every, resume is not None, call | {"threads": torch.get_num_threads()}, memory)
    images, begin, photographs = (Path(place) if place else None for place in (samples, generator, proxy))
    if device == "auto":
        shown.say(f"the device is {work.device}")
    report = quantize_run(
        model,
        qconfig,
        algorithm,
        effort,
        seed,
        folder,
        overwrite,
        shown,
        data,
        keeping,
        images,
        work,
        begin,
        photographs,
    )
    if not is_first():
        return
    click.echo(json_text(report, indent=1) if as_json else _summary(folder, report))
    if report.get("fault"):
        raise RunError(report["fault"])
    if report["interrupted"]:
        raise Interrupted(
            f"interrupted; what was finished is in {folder}/ and says so. zaq quantize --resume {folder} goes on."
        )


def _placed(
    model: "Source", qconfig: "QConfig", call: dict[str, Any], shown: "Progress"
) -> tuple["Source", "QConfig", dict[str, Any]]:
    """What `--optimize` finds: it is asked for by name from here on, so that the run can go on and be repeated though
    another time may measure otherwise."""
    from zaq.api import placed_by_time

    found = placed_by_time(model.graph, model.card, qconfig, shown)
    shown.say(found.sentence())
    new = [f"{pattern}={bits}" for pattern, bits in found.qconfig.layers.items() if pattern not in qconfig.layers]
    call = call | {"optimize": None, "layer_bits": (*call["layer_bits"], *new)}
    layers = layers_of(call["layer_bits"], call["exclude"])  # in the order that the next run reads them in
    return replace(model, notes=(*model.notes, found.sentence())), replace(qconfig, layers=layers), call


def _require_no_code_in_config(context: click.Context) -> None:
    """Raise UserError for a file of options that names code: whoever calls has to name that himself."""
    for flag, text in said_in_config(context, NAMES_CODE):
        if runs_code(text):
            raise UserError(
                f"--config: names {flag} {text}, which is code; a file has none run that the command line does not "
                "name as well: say it again."
            )


def _as_begun(context: click.Context, folder: Path) -> dict[str, Any]:
    """The parameters of the call that began a run. What this one says beside them has to be the same; but a run may go
    on elsewhere.

    A folder that one was sent names nothing that is called: code is named on the command line alone.
    """
    from zaq.pipeline import MOVABLE, call_of

    context.meta[AGAIN] = True
    begun, now = call_of(folder), context.params
    for name in begun.keys() & now.keys():
        flag = "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
        said = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if said and now[name] != begun[name] and name not in MOVABLE:
            raise UserError(f"--resume {folder}: was begun with {flag} {begun[name]}, not {now[name]}.")
        code = [text for text in _texts(begun[name]) if name in NAMES_CODE and runs_code(text)]
        if not said and code:
            raise UserError(
                f"--resume {folder}: was begun with {flag} {code[0]}, which is code; a folder has none run that the "
                "command line does not name as well: say it again."
            )
    kept = {n for n in MOVABLE if context.get_parameter_source(n) is not ParameterSource.DEFAULT}
    return now | {name: value for name, value in begun.items() if name in now and name not in kept}


def _where(work: "Work") -> str:
    precision = "" if work.precision == "32-true" else f", {work.precision}"
    return f"on {work.device}{precision}"


def _texts(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, (tuple, list)) else [str(value)]


def _data_read(report: dict[str, Any]) -> str:
    data = report["options"]["data"]
    return click.style(f"REAL IMAGES READ: {data}", fg="red") if data else "no data read"


def _mixture(report: dict[str, Any]) -> str:
    """How many layers got how many bits, and what that is packed, of what was allowed where a size was."""
    bits = list(report["layer_bits"].values())
    counts = [f"{bits.count(b)} layer{'s' if bits.count(b) > 1 else ''} at {b}" for b in sorted(set(bits))]
    allowed = report["options"]["qconfig"]["target_size"]
    taken = f"{report['weight_bytes'] / 2**20:.2f}" + (f" of {allowed / 2**20:.2f}" if allowed else "")
    return f"bits: {', '.join(counts)}; {taken} MB, packed"


def _verdict(folder: Path, report: dict[str, Any]) -> list[str]:
    """What came out of it, in the last lines, and the commands that follow."""
    ours, floats = report["sizes"]["model.onnx"], report["sizes"]["float weights"]
    return [
        f"{ours / 1024:.0f} KB, {floats / ours:.1f} times smaller than the {floats / 1024:.0f} KB of float weights",
        *_speed(report),
        report["estimate"]["sentence"],
        f"next: zaq eval {folder} --data KIND:PLACE    how good it is on labelled images, beside the float network",
        f"      zaq predict {folder} PHOTO...          what it says of some photographs",
    ]


def _speed(report: dict[str, Any]) -> list[str]:
    """How fast it is where it was made; and what can be done about a file that is slower than float."""
    from zaq.cost.latency import SLOWER, speed_sentence

    if "speed" not in report:  # it is for another runtime
        return []
    placed = STORED in report["options"]["qconfig"]["layers"].values()
    hint = f"--optimize {LATENCY} lets layers compute in float that integers make slower"
    return [speed_sentence(report["speed"]), *([hint] if report["speed"]["times"] < SLOWER and not placed else [])]


def _summary(folder: Path, report: dict[str, Any]) -> str:
    options, agreement = report["options"], report["agreement"]
    lines = [
        f"{options['source']['name']} at {options['bits']} on {options['device']}, "
        f"{report['minutes']:.1f} min, " + _data_read(report)
    ]
    lines += [f"  note: {note}" for note in report["notes"]]
    lines += [f"  note: {s['name']}: {s['note']}" for s in report["stages"] if s["note"]]
    if "top1_agreement" in agreement:
        share, samples = 100 * agreement["top1_agreement"], agreement["samples"]
        lines.append(
            f"  same top-1 as the float model on {share:.1f} % of {samples} synthetic samples (mostly harder than "
            "real ones)"
        )
    if report["layer_bits"]:
        lines.append(f"  {_mixture(report)}")
    lines.append(f"  file against checkpoint: {report['parity_sentence']}")
    lines += [f"  at {size}: {parity['sentence']}" for size, parity in report.get("other_sizes", {}).items()]
    lines.append(f"  {folder}/model.onnx, and report.html beside it")
    lines += _verdict(folder, report)
    return "\n".join(lines)
