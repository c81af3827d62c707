"""`zaq export`."""

from pathlib import Path

import click

from zaq.cli.options import PATH
from zaq.cli.verify import say
from zaq.errors import BitsError, OutputError, RunError

__all__ = ["export"]


@click.command()
@click.argument("run", type=PATH)
@click.option(
    "--format", "form", default="qdq", show_default=True, help="qdq, packed (4-bit weights), qoperator, ort, or float."
)
@click.option("--opset", type=click.IntRange(min=1), help="ONNX opset; the lowest that holds the file if not given.")
@click.option("-o", "--output", type=PATH, help="The file; RUN/model.FORMAT.onnx by default, RUN/model.onnx for qdq.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def export(run: Path, form: str, opset: int | None, output: Path | None, overwrite: bool) -> None:
    """RUN's checkpoint as an ONNX file of another form, checked against the checkpoint."""
    from zaq.config.targets import target_of
    from zaq.export.forms import require_form
    from zaq.export.onnx import to_onnx
    from zaq.ir.capture import from_exported
    from zaq.report.facts import onnx_metadata
    from zaq.run import NEEDED, Run, write_file
    from zaq.sources.frame import put_back
    from zaq.verify.layers import fault
    from zaq.verify.parity import compare

    require_form(form)
    opened = Run.open(run, NEEDED)
    path = output or run / {"qdq": "model.onnx", "ort": "model.ort"}.get(form, f"model.{form}.onnx")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; name another file with -o, or say --overwrite.")
    options = opened.options()
    metadata = onnx_metadata(options) | {"parts": opened.hashes()}
    target = target_of(options.get("target", "onnxruntime"))
    program = opened.program()
    frame = opened.frame()
    if frame is not None and form == "ort":
        raise BitsError(
            f"{run}: what stands around the network in its source cannot be put into the form 'ort'; choose another."
        )
    content = to_onnx(program, metadata, form=form, opset=opset, target=target, interface=opened.interface())
    write_file(path, put_back(content, frame))
    click.echo(f"{path}: {path.stat().st_size / 1024:.0f} KB")
    student, samples = from_exported(program), opened.samples()
    parity = compare(path, student, samples)
    if form != "float":
        say(parity)
        if wrong := fault(path, parity, student, samples):
            raise RunError(wrong)
    elif parity.top1_agreement is not None:
        click.echo(
            f"the quantized model finds the same class in {100 * parity.top1_agreement:.2f} % of {parity.samples} "
            "samples"
        )
