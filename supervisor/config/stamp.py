"""What the files of a configuration looked like, to tell whether they are still those that were read."""

from __future__ import annotations

import contextlib
from pathlib import Path

Stamp = frozenset[tuple[str, int, int, int]]
"""(path, inode, nanoseconds, bytes) of each file that is there."""


def stamp(document: Path, profiles: Path) -> Stamp:
    """Of llmd.toml and the files in the directory of the profiles. Reads the disk."""
    files = [document]
    with contextlib.suppress(OSError):  # no such directory: that differs from one that was there
        files += profiles.glob("*.toml")
    found = set()
    for file in files:
        with contextlib.suppress(OSError):
            seen = file.stat()
            found.add((str(file), seen.st_ino, seen.st_mtime_ns, seen.st_size))
    return frozenset(found)
