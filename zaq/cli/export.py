"""`zaq export`."""

from pathlib import Path

import click

from zaq.cli.kinds import FORMS, Choice
from zaq.cli.options import PATH
from zaq.cli.verify import say
from zaq.errors import OutputError, RunError

__all__ = ["export"]


@click.command()
@click.argument("run", type=PATH)
@click.option(
    "--format",
    "form",
    type=Choice(FORMS),
    default="qdq",
    show_default=True,
    help="packed: with weights of 4 bits; float: not quantized.",
)
@click.option("--opset", type=click.IntRange(min=1), help="ONNX opset; the lowest that holds the file if not given.")
@click.option("-o", "--output", type=PATH, help="The file; RUN/model.FORMAT.onnx by default, RUN/model.onnx for qdq.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def export(run: Path, form: str, opset: int | None, output: Path | None, overwrite: bool) -> None:
    """RUN's checkpoint as an ONNX file of another form, checked against the checkpoint."""
    from zaq.config.files import scratch
    from zaq.config.targets import target_of
    from zaq.export.onnx import in_form, translate
    from zaq.ir.capture import from_exported
    from zaq.report.facts import onnx_metadata
    from zaq.run import NEEDED, Run, write_file
    from zaq.verify.layers import fault
    from zaq.verify.parity import compare

    opened = Run.open(run, NEEDED)
    path = output or run / {"qdq": "model.onnx", "ort": "model.ort"}.get(form, f"model.{form}.onnx")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; name another file with -o, or say --overwrite.")
    options = opened.options()
    metadata = onnx_metadata(options) | {"parts": opened.hashes()}
    target = target_of(options.get("target", "onnxruntime"))
    program, frame, interface = opened.program(), opened.frame(), opened.interface()
    translated = translate(program)

    def made(around: bytes | None) -> bytes:
        return in_form(translated, metadata, form, opset, target, interface, around)

    write_file(path, made(frame))
    click.echo(f"{path}: {path.stat().st_size / 1024:.0f} KB")
    student, samples = from_exported(program), opened.samples()
    with scratch() as folder:
        compared = path
        if form == "ort" and frame is not None:  # nothing takes the network out of such a file again
            compared = folder / path.name
            compared.write_bytes(made(None))
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
