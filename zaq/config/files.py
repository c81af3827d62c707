"""Files that are whole, or not there."""

import secrets
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write to a file of a name that nobody can foresee, made anew and in the same folder, then move it into place.

    Raises OSError where that fails; nothing is left of it then.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with temporary.open("xb") as stream:  # x: no file and no link that lies there already
        try:
            stream.write(content)
            stream.flush()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
