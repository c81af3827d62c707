"""Files that are whole, or not there; and those that are gone afterwards."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zaq.errors import RunError

__all__ = ["beside", "scratch", "write_whole"]

FULL = 2**16  # bytes: a disk with fewer left is what an error came from


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write bytes, or chunks of them, to a file of a name that nobody can foresee, made anew and in the same folder,
    then move it into place.

    Raises OSError where that fails; nothing is left of it then.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with temporary.open("xb") as stream:  # x: no file and no link that lies there already
        try:
            stream.writelines([content] if isinstance(content, bytes) else content)
            stream.flush()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for files that nobody needs afterwards.

    Raises RunError where there is no place for it, or that place is full: onnxruntime says then that a model is broken.
    """
    try:
        made = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    except OSError as error:
        raise RunError(f"there is no folder for temporary files ({error.strerror}); set TMPDIR to one.") from error
    with made as folder:
        try:
            yield Path(folder)
        except Exception as error:
            if shutil.disk_usage(folder).free < FULL:
                raise RunError(
                    f"{tempfile.gettempdir()}: no space left on the disk for temporary files; free some, or set TMPDIR "
                    "to another folder."
                ) from error
            raise


def beside(path: Path) -> Path:
    """Where the run of `path` is built: beside, so that moving it is one step; inside where that cannot be."""
    real = path.resolve()
    inside = real.is_dir() and (real.is_mount() or not os.access(real.parent, os.W_OK))
    return real / ".partial" if inside else real.with_name(f"{real.name}.partial")
