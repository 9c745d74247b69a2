"""Files that are whole or not there: written under another name first, and named when they are complete."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file in one step: who looks meanwhile sees the old file, or none, and never half of the new one.

    Args:
        path: the file; it replaces one that is there.
        content: its bytes; they are on the disk before the file has its name.
        mode: its permissions (less the umask) from the first moment on; 0o600 keeps a secret from other users.

    Raises:
        OSError: it could not be written; the old file is as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
