"""`zaq verify`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zaq.cli.kinds import DATA
from zaq.cli.options import THERE, Number, device_option, progress
from zaq.config.bounds import json_text
from zaq.errors import RunError, UserError

if TYPE_CHECKING:
    from zaq.verify.parity import Parity

__all__ = ["say", "verify"]


@click.command()
@click.argument("run", type=THERE)
@click.option(
    "--data",
    type=DATA,
    help="Compare on real images as well, of any kind that zaq eval reads: cifar10:DIR, yolo:DIR, ...",
)
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Only the first of them.")
@click.option("--layers", is_flag=True, help="Print every layer, not only the first that parts.")
@click.option(
    "--min-agreement",
    type=Number(0, 100),
    help="Exit with 1 where a file finds the checkpoint's class in fewer percent of the samples, as 99.5; where there "
    "are no classes: for fewer percent of elements within one step.",
)
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def verify(
    run: Path, data: str | None, limit: int, layers: bool, min_agreement: float | None, device: str, as_json: bool
) -> None:
    """RUN's ONNX files against its quantized checkpoint, and both against integer arithmetic, layer by layer.

    Exit code 1 where a file is not the checkpoint: where their outputs differ by more than rounding can explain.
    """
    from zaq.compute.devices import device_named
    from zaq.cost.deployment import forms_of
    from zaq.data import ANY, listed, loaded
    from zaq.ir.move import on
    from zaq.ir.nodes import open_sizes
    from zaq.run import Run
    from zaq.verify.layers import SAMPLES, compare_in_parts, fault, summary
    from zaq.verify.parity import BATCH, compare, compare_sizes

    if min_agreement is not None and 0 < min_agreement <= 1:
        raise UserError(f"--min-agreement {min_agreement:g}: counts in percent; is {100 * min_agreement:g} meant?")
    where, opened = device_named(device), Run.open(run)
    forms = forms_of(opened / "model.onnx")
    for form in forms:
        opened.require_parts(form.name)
    student, samples = opened.student(), opened.samples()
    progress().say("comparing, layer by layer first")
    found = compare_in_parts(opened / "model.onnx", student, samples[:SAMPLES])
    there = on(student, where)
    parity = {p.name: compare(p, there, samples) for p in forms}
    sizes = compare_sizes(opened / "model.onnx", there, samples, open_sizes(student))
    parity |= {f"model.onnx at {size}": one for size, one in sizes.items()}
    if data:
        real = loaded(listed(data, opened.card(), ANY)[:limit], opened.card(), BATCH)
        parity[f"model.onnx on {data}"] = compare(opened / "model.onnx", there, (images for images, _ in real))
    if as_json:
        fields: dict[str, Any] = {name: p.to_dict() for name, p in parity.items()}
        click.echo(
            json_text(
                fields.pop("model.onnx") | {"others": fields, "layers": [dataclasses.asdict(x) for x in found]},
                indent=1,
            )
        )
    else:
        for name, one in parity.items():
            click.echo(f"{name}: ", nl=False)
            say(one)
        for line in summary(found, layers):
            click.echo(line)
    for name, one in parity.items():
        path = opened / name.partition(" on ")[0]
        if wrong := fault(path, one, student, samples):
            raise RunError(wrong)
        if min_agreement is not None and not one.agreement >= min_agreement:
            raise RunError(
                f"{opened.path}, {name}: agrees on {one.agreement:.2f} %, less than the {min_agreement:g} asked."
            )


def say(parity: "Parity") -> None:
    """How a file compares with its checkpoint, what kernels it runs, and which of them in float."""
    click.echo(parity.sentence())
    if parity.kernels:
        click.echo("  kernels: " + ", ".join(f"{n} {k}" for k, n in parity.kernels.items()))
    alike: dict[str, list[str]] = {}
    for line in parity.float_kernels:
        alike.setdefault(line.split()[0], []).append(line)
    for lines in alike.values():  # a transformer has a hundred
        click.echo(f"  in float: {lines[0]}" + (f"; {len(lines) - 1} more of these" if len(lines) > 1 else ""))
