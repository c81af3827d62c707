"""`zaq quantize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from zaq.cli.options import (
    PATH,
    MethodOption,
    Seconds,
    device_option,
    ends,
    load_source,
    method_of,
    progress,
    runs_code,
    size_in_bytes,
    source_options,
)
from zaq.config.bounds import json_text
from zaq.errors import BitsError, Interrupted, RunError, UserError, unknown

if TYPE_CHECKING:
    from zaq.engine.work import Work

__all__ = ["quantize"]

# What does not change what comes out.
NOT_ASKED = ("output", "overwrite", "resume", "every", "memory", "dry_run", "as_json")
MOVABLE = ("device", "devices", "num_nodes")  # a run may go on with others
NAMES_CODE = ("source", "arch", "method", "settings")
AGAIN = "zaq.resumed"  # whether options were read from the run that is resumed


@click.command()
@click.argument("source", default="zoo:resnet20_cifar10")
@click.option(
    "--bits",
    default="w4a4",
    show_default=True,
    help="Bits of weights and activations, w2a2 to w8a8; w4.0a4: 4 on average; or mixed.",
)
@click.option("--target-size", help="With --bits mixed: bytes that all weights may take, as 0.3MB.")
@click.option(
    "--placement",
    default="integer",
    show_default=True,
    help="What is quantized: integer; shared; a protocol: gdfq, brecq.",
)
@click.option("--weights", help="Grids of weights: per_channel (default), per_tensor, and both with _affine.")
@click.option("--activations", help="Grids of activations: affine (default), or symmetric: signed, zero point 0.")
@click.option(
    "--target",
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
    default="flagship",
    show_default=True,
    help="Or package.module:Class, or zaq, rtn, dfq, aciq, zeroq, deepinversion, gdfq, ft",
)
@click.option("-s", "settings", multiple=True, metavar="KEY=VALUE", help="A constant of the method; repeatable.")
@click.option("--effort", default="default", show_default=True, help="fast, default or best.")
@click.option("--data", help="Real training images, for --method ft alone: cifar10:DIR, ... No other method reads any.")
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
@click.option("--samples", metavar="RUN", help="Learn from the images of a run of the same model, which draws none.")
@click.option("-o", "--output", type=PATH, help="Folder for the run; <model>-<bits> by default.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there, once the new one is whole.")
@click.option("--resume", type=PATH, metavar="RUN", help="Go on with a run that was broken off; it knows its options.")
@click.option("--snapshot", "every", type=Seconds(), default="60s", show_default=True, help="How often it is saved.")
@click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@source_options
def quantize(source: str, bits: str, target_size: str | None, placement: str, weights: str | None,
             activations: str | None, target: str, first_last: str, depthwise: int | None, method: str,
             settings: tuple[str, ...], effort: str, data: str | None, seed: int, device: str,
             precision: str, devices: int, num_nodes: int, threads: int | None,
             memory: str | None, samples: str | None,
             output: Path | None, overwrite: bool, resume: Path | None, every: float, dry_run: bool, as_json: bool,
             **flags: Any) -> None:  # fmt: skip
    """Quantize SOURCE; the shipped CIFAR-10 ResNet-20 if none is named.

    SOURCE: a .pt2 or .onnx file; .safetensors, .pt or .pth weights with --arch; timm:NAME, torchvision:NAME,
    hf-hub:OWNER/NAME; package.module:factory; zoo:NAME.
    """
    import torch

    from zaq.compute.devices import device_named
    from zaq.compute.processes import is_first, launch
    from zaq.config.bits import EFFORTS, QConfig
    from zaq.config.memory import allowed
    from zaq.engine.progress import Progress
    from zaq.engine.work import Work
    from zaq.pipeline import Keeping, quantize_run

    if resume and output not in (None, resume):
        raise UserError(f"--resume {resume}: the run goes on where it is; -o {output} beside it cannot be.")
    if resume is not None and not (context := click.get_current_context()).meta.get(AGAIN):
        context.invoke(quantize, **_as_begun(context, resume))
        return
    if effort not in EFFORTS:
        raise BitsError("--effort: " + unknown("effort", effort, EFFORTS))
    qconfig = QConfig.parse(
        bits, ends(first_last), placement, weights, size_in_bytes(target_size), activations, target, depthwise
    )
    algorithm = method_of(method, settings)
    if algorithm.reads_data != (data is not None):
        raise UserError(
            f"--method {method} "
            + ("reads real images: name them with --data." if data is None else "reads no data; only ft does.")
        )
    work, kept = Work(device_named(device), precision), allowed(memory)
    model = load_source(source, flags)
    folder = resume or output or Path(f"{model.name}-{qconfig}")
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
    keeping = Keeping(every, resume is not None, call | {"threads": torch.get_num_threads()}, memory)
    images = Path(samples) if samples else None
    shown = progress() if is_first() else Progress()
    shown.say(f"{model.name} to {qconfig}, {_where(work)}")
    report = quantize_run(
        model, qconfig, algorithm, effort, seed, folder, overwrite, shown, data, keeping, images, work
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


def _as_begun(context: click.Context, folder: Path) -> dict[str, Any]:
    """The parameters of the call that began a run. What this one says beside them has to be the same; but a run may go
    on elsewhere.

    A folder that one was sent names nothing that is called: code is named on the command line alone.
    """
    from zaq.pipeline import call_of

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


def _summary(folder: Path, report: dict[str, Any]) -> str:
    options, agreement, sizes = report["options"], report["agreement"], report["sizes"]
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
    lines.append(f"  {sizes['model.onnx'] / 1024:.0f} KB, {sizes['float weights'] / 1024:.0f} KB as float")
    lines.append(f"  {folder}/model.onnx, and report.html beside it")
    return "\n".join(lines)
