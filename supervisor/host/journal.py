"""The state that survives the daemon: one directory an incarnation, with a record of what runs in it.

    STATE/lock                          held by the one daemon there may be
    STATE/engines/INCARNATION/          0700, so that nobody else reaches the socket inside
        record.json                     0600, holds the engine's key; replaced whole or not at all
        sock  tmp/  ipc/                the engine's own, gone with it

A record is written before its engine is started, and again when its pid is known: there is never a tree
without a record.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from supervisor.errors import AlreadyRunning, OperatorError
from supervisor.host.tree import Identity

VERSION = 1

_SOCKET_LIMIT = 107
"""Bytes in the path of a Unix socket."""

_LONGEST = "ipc/00000000-0000-0000-0000-000000000000"
"""The longest name an engine binds below its directory."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a later daemon needs to take the engine back. `pid` to `session` are None until it has started."""

    incarnation: str
    profile: str
    models: tuple[str, ...]
    """The names it serves under."""
    key: str = field(repr=False)
    boot_id: str
    pid: int | None
    start_time: int | None
    session: int | None
    cgroup: str | None
    spawned_at: str
    """Wall clock, RFC 3339."""
    argv: tuple[str, ...]
    log: str
    devices: tuple[str, ...]
    ready: bool
    asleep: int = 0
    """The level at which it was told to sleep and may do so still, written before it is told; 0 when awake."""
    waking: bool = False
    """It was told to wake, written before it is told: it may take all of its memory any moment."""
    weights: int | None = None
    """Bytes, and the tokens of its KV cache: as it said while it loaded."""
    kv_tokens: int | None = None
    pinned: bool = False
    """A person asked that it stays."""
    version: int = VERSION

    def identity(self) -> Identity | None:
        """None where the daemon died before it could write down what it had started."""
        if self.pid is None or self.start_time is None or self.session is None:
            return None
        return Identity(self.pid, self.start_time, self.boot_id, self.session, self.cgroup, self.incarnation)


@dataclass(frozen=True, slots=True)
class Damage:
    """A directory whose record cannot be read. Its name is still the incarnation's."""

    path: Path
    reason: str

    @property
    def incarnation(self) -> str:
        return self.path.name


class Journal:
    """The records below one state directory. Everything here blocks for a disk's time."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._engines = state_dir / "engines"
        self._lock: int | None = None

    def lock(self) -> None:
        """Become the one daemon of this state directory, until `unlock` or death.

        Raises AlreadyRunning, or OperatorError where this user may not write there.
        """
        lock = self._open_lock()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise AlreadyRunning(
                f"another llmd (pid {owner}) runs on {self.state_dir}; stop it, or give this one another state_dir"
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock

    def _open_lock(self) -> int:
        try:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self.state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(
                f"cannot write to {self.state_dir}: {error.strerror}; "
                "give llmd's user that directory, or name another as server.state_dir"
            ) from error

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def directory(self, incarnation: str) -> Path:
        return self._engines / incarnation

    def socket(self, incarnation: str) -> Path:
        return self.directory(incarnation) / "sock"

    def prepare(self, incarnation: str) -> Path:
        """Make an incarnation's directory with its `tmp` and `ipc`. Raises OperatorError where it lies too deep."""
        path = self.directory(incarnation)
        excess = len(os.fsencode(path / _LONGEST)) - _SOCKET_LIMIT
        if excess > 0:
            raise OperatorError(
                f"{self.state_dir}: sockets below it would have paths {excess} bytes too long; "
                "give llmd a state_dir with a shorter path"
            )
        for made in (path, path / "tmp", path / "ipc"):
            made.mkdir(mode=0o700, parents=True)
        return path

    def write(self, record: Record) -> None:
        """Replace the record; after a crash or a full disk at any point either the old or the new one is there."""
        directory = self.directory(record.incarnation)
        target, draft = directory / "record.json", directory / "record.json.new"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)  # noqa: PTH105 - named as the system call it stands for
        _sync(directory)

    def records(self) -> tuple[list[Record], list[Damage]]:
        """All that is known to have run, and what cannot be read of it."""
        records: list[Record] = []
        damages: list[Damage] = []
        paths = sorted(self._engines.iterdir()) if self._engines.is_dir() else []
        for path in paths:
            read = _read(path)
            if isinstance(read, Record):
                records.append(read)
            else:
                damages.append(read)
        return records, damages

    def forget(self, incarnation: str) -> None:
        """Remove an incarnation's directory with all that the engine left in it."""
        shutil.rmtree(self.directory(incarnation), ignore_errors=True)


def _read(path: Path) -> Record | Damage:
    try:
        data = (path / "record.json").read_bytes()
    except FileNotFoundError:
        return Damage(path, "no record: llmd died before it wrote one")
    except OSError as error:
        return Damage(path, f"record.json cannot be read: {error.strerror}")
    return _decode(path, data)


def _decode(path: Path, data: bytes) -> Record | Damage:
    if not data:
        return Damage(path, "record.json is empty")
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != VERSION:
            return Damage(path, f"record.json is of version {version}, this llmd reads {VERSION}")
        record = msgspec.json.decode(data, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Damage(path, f"record.json is torn: {error}")
    if record.incarnation != path.name:
        return Damage(path, f"record.json is that of {record.incarnation!r}")
    return record


class _Versioned(msgspec.Struct):
    """Read first: a future record need not look like ours otherwise."""

    version: int


def _sync(directory: Path) -> None:
    """A rename is on disk when its directory is."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
