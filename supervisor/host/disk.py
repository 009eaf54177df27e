"""Free space where a path is, or would be made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def standing(path: Path) -> Path:
    """The path itself, or the nearest directory above it that is there."""
    # Path.exists raises where os.path's does not: below a folder that it may not enter.
    return next(each for each in (path, *path.parents) if os.path.exists(each))  # noqa: PTH110


def free_for(path: Path) -> int:
    """Bytes that an ordinary user may still write there. Raises OSError."""
    return shutil.disk_usage(standing(path.absolute())).free
