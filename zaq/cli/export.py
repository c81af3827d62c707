"""`zaq export`."""

from pathlib import Path

import click

from zaq.cli.kinds import FORMS, Choice
from zaq.cli.options import PATH, THERE
from zaq.cli.verify import say
from zaq.errors import OutputError, RunError

__all__ = ["export"]

FEW = 16  # samples that a file with its input baked is compared on, number for number


@click.command()
@click.argument("run", type=THERE)
@click.option(
    "--format",
    "form",
    type=Choice(FORMS),
    default="qdq",
    show_default=True,
    help="packed: with weights of 4 bits; float: not quantized.",
)
@click.option(
    "--bake-input",
    "layout",
    metavar="nhwc|nchw",
    help="Take uint8 images, RGB, of this layout: what normalises them is put into the file.",
)
@click.option("--opset", type=click.IntRange(min=1), help="ONNX opset; the lowest that holds the file if not given.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="The file; RUN/model.onnx by default, or RUN/model.packed.nhwc.onnx and so on.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def export(run: Path, form: str, layout: str | None, opset: int | None, output: Path | None, overwrite: bool) -> None:
    """RUN's checkpoint as an ONNX file of another form, checked against the checkpoint."""
    from zaq.config.files import scratch
    from zaq.config.targets import target_of
    from zaq.export.bake import bake, require_bakeable, require_same
    from zaq.export.onnx import in_form, translate
    from zaq.ir.capture import from_exported
    from zaq.report.facts import onnx_metadata
    from zaq.run import NEEDED, Run, write_file
    from zaq.use.usage import LABELS, usage_files
    from zaq.verify.layers import fault
    from zaq.verify.parity import compare

    opened = Run.open(run, NEEDED)
    if layout:
        require_bakeable(opened.card(), layout)
    path = output or run / _named(form, layout)
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; name another file with -o, or say --overwrite.")
    options = opened.options()
    metadata = onnx_metadata(options) | {"parts": opened.hashes()}
    target = target_of(options.get("target", "onnxruntime"))
    program, frame, interface = opened.program(), opened.frame(), opened.interface()
    translated = translate(program)
    if layout:
        frame, interface = bake(translated, frame, interface, opened.card(), layout)
        metadata["baked"] = layout

    def made(around: bytes | None) -> bytes:
        return in_form(translated, metadata, form, opset, target, interface, around)

    write_file(path, made(frame))
    beside = usage_files(path, opened.card(), layout) if form != "ort" else {}
    for name, text in beside.items():
        write_file(path.with_name(name), text)
    programs = ", ".join(name for name in beside if name != LABELS)
    click.echo(f"{path}: {path.stat().st_size / 1024:.0f} KB" + (f"; {programs} beside it" if programs else ""))
    student, samples = from_exported(program), opened.samples()
    with scratch() as folder:
        compared = path
        if form == "ort" and frame is not None:  # nothing takes the network out of such a file again
            compared = folder / path.name
            compared.write_bytes(made(None))
        if layout:
            require_same(path, compared, opened.pixels()[:FEW], opened.card(), layout)
        parity = compare(compared, student, samples)
    if form != "float":
        say(parity)
        if wrong := fault(path, parity, student, samples):
            raise RunError(wrong)
    elif parity.top1_agreement is not None:
        click.echo(
            f"the quantized model finds the same class in {100 * parity.top1_agreement:.2f} % of {parity.samples} "
            "samples"
        )


def _named(form: str, layout: str | None) -> str:
    """What a form's file is called: model.onnx, model.packed.onnx, model.packed.nhwc.onnx, model.ort."""
    parts = ["model", *([form] if form not in ("qdq", "ort") else []), *([layout] if layout else [])]
    return ".".join([*parts, "ort" if form == "ort" else "onnx"])
