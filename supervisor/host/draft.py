"""Text files that come into being whole or not at all, for a daemon may read them at any moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def create(file: Path, text: str) -> None:
    """Write a new file, readable by everyone as far as the umask lets. Raises FileExistsError, OSError."""
    with _written(file, text) as draft:
        draft.chmod(0o666 & ~_umask())
        os.link(draft, file)  # unlike a rename it never takes another one's place


def replace(file: Path, text: str) -> None:
    """Write another text into a file, which keeps its owner and mode. Raises OSError."""
    file = file.resolve()  # what a link leads to is written, the link stays
    found = file.stat()
    with _written(file, text) as draft:
        os.chown(draft, found.st_uid, found.st_gid)
        shutil.copymode(file, draft)
        draft.rename(file)


@contextlib.contextmanager
def _written(file: Path, text: str) -> Iterator[Path]:
    number, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(number)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    """It can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
