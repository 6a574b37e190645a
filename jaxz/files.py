"""Files that are there complete or not at all."""

import os
from pathlib import Path


def replace(path: Path, content) -> None:
    """Write bytes to `path` so that a reader finds the old file or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
