"""The devices that torch computes on here, by the names it gives them."""

import torch

from zaq.errors import UserError, unknown

__all__ = ["AUTO", "CPU", "device_named", "devices"]

AUTO = "auto"
CPU = torch.device("cpu")
CHOSEN = ("cuda", "mps", "xpu")  # what `auto` takes where torch can compute on it; others have to be named


def devices() -> list[str]:
    """What there is on this machine: `cpu`, and each device of the accelerator that this torch was built for."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if kind is not None else 0
    return ["cpu", *(f"{kind.type}:{i}" for i in range(count) if kind is not None)]


def device_named(name: str | torch.device) -> torch.device:
    """The device of that name; for `auto` the accelerator that torch finds, else the CPU.

    Raises UserError for one that is not there, and says what is.
    """
    there = devices()
    if str(name) == AUTO:
        best = there[-1] if len(there) == 1 else there[1]
        return torch.device(best if best.partition(":")[0] in CHOSEN else "cpu")
    plain = str(name) if ":" in str(name) or str(name) == "cpu" else f"{name}:0"
    if plain not in there:
        try:
            torch.device(plain)
        except RuntimeError as error:
            if str(name).lower() == "gpu":
                raise UserError(f"--device {name}: torch calls it cuda, or mps on a Mac; auto takes it.") from error
            raise UserError("--device: " + unknown("device", str(name), [AUTO, *there])) from error
        raise UserError(f"--device {name}: is not there; there is: {', '.join(there)}.{_why(plain)}")
    return torch.device(plain)


def _why(name: str) -> str:
    """What a device that is not there may need."""
    if name.startswith("cuda") and torch.version.cuda is None:
        return f" This torch, {torch.__version__}, was built without CUDA; https://pytorch.org/get-started has others."
    return ""
