"""The configuration as frozen models: what may be written, and the defaults. Durations are seconds, sizes bytes.

What one file contradicts in itself or another is `checks`' business; here each value is judged alone.
"""

from __future__ import annotations

import re
import zoneinfo
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from supervisor.config.quantities import Bytes, Seconds, SecondsOrNever, TimeOfDay, wrong

GIB = 1 << 30
MIB = 1 << 20

Task = Literal["generate", "embed", "rerank"]
Priority = Literal["interactive", "batch"]

DEFAULT_UTILIZATION = 0.92
"""vLLM's own default for --gpu-memory-utilization; always passed, so that its changes cannot surprise."""


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _path(value: object) -> object:
    return Path(_text(value)) if isinstance(value, str) and value else value


def _text(value: str) -> str:
    if "\0" in value:
        raise wrong("a NUL character cannot be passed to a program", "leave it out")
    return value


def _variable(value: str) -> str:
    if not value or "=" in value:
        raise wrong(f"{value!r} is no name of a variable", "write one without =")
    return _text(value)


def _listen(value: str) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})", value)
    if match is None or int(match[2]) > 65535:
        raise wrong(f"{value!r} is no address", 'write "127.0.0.1:8000", "[::1]:8000" or "tailscale:8000"')
    return value


def _gpu(value: object) -> object:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(
        r"GPU-[0-9a-fA-F-]+|([0-9a-fA-F]+:)?[0-9a-fA-F]+:[\w.]+", value
    ):
        return value
    raise wrong(f"{value!r} names no GPU", 'write an index such as 0, a UUID "GPU-..." or a PCI id "01:00.0"')


def _model_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", value):
        raise wrong(f"{value!r} is no model name", "write letters, digits and . _ : / @ -, without spaces")
    return value


def _hash(value: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise wrong("this is no key hash", 'write "sha256:" and 64 lower-case hex digits')
    return value


def _timezone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise wrong(
            f"this host knows no time zone {value!r}", 'write an IANA name such as "Europe/Berlin"'
        ) from None
    return value


Text = Annotated[str, AfterValidator(_text)]
Env = dict[Annotated[str, AfterValidator(_variable)], Text]
Strings = Annotated[tuple[Text, ...], BeforeValidator(_tuple)]
Command = Annotated[tuple[Text, ...], BeforeValidator(_tuple), Field(min_length=1)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Listen = Annotated[str, AfterValidator(_listen)]
Gpu = Annotated[int | str, BeforeValidator(_gpu)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Server(Frozen):
    listen: Annotated[tuple[Listen, ...], BeforeValidator(_tuple), Field(min_length=1)] = ("127.0.0.1:8000",)
    admin_socket: FilePath = Path("/run/llmd/llmd.sock")
    admin_group: str | None = None
    state_dir: FilePath = Path("/var/lib/llmd")
    profiles: FilePath = Path("profiles")
    max_wait: Seconds = 290.0
    """The longest a request is held for a model; common clients give up at 300 s."""
    drain: Seconds = 30.0
    header_timeout: Annotated[Seconds, Field(gt=0)] = 10.0
    """A connection that has not sent the whole head of a request by then is closed."""
    max_body: Bytes = 64 * MIB


class EngineDefaults(Frozen):
    command: Command = ("vllm", "serve")
    env: Env = {}
    start_timeout: Seconds = 600.0
    """Without progress in the engine's log: a slow download that moves is not cut off."""
    stop_grace: Seconds = 15.0
    settle_timeout: Seconds = 60.0
    health_interval: Seconds = 5.0
    log_size: Bytes = 64 * MIB
    """Of an engine's log and the part kept of it before, together. 100 MB/s take a tenth more at most."""


class Memory(Frozen):
    margin: Bytes = 256 * MIB
    """Kept free on each GPU: NVML's total is not CUDA's."""
    host_floor: Bytes = 2 * GIB
    """Kept free of host memory by CPU engines."""
    max_age: Seconds = 15.0
    """An older reading admits no start."""


class Restarts(Frozen):
    first_delay: Seconds = 10.0
    max_delay: Seconds = 300.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.25
    reset_after: Seconds = 600.0
    give_up_after: Count = 5
    within: Seconds = 1800.0


class Key(Frozen):
    """Where the API key of one source is found; the table's name is the source."""

    env: str | None = None
    hash: Annotated[str, AfterValidator(_hash)] | None = None
    file: FilePath | None = None
    priority: Priority = "interactive"

    @model_validator(mode="after")
    def _one_place(self) -> Key:
        given = [name for name in ("env", "hash", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "nothing"
            raise wrong(f"a key is found in one place, not in {said}", "write one of env, hash or file")
        return self


class Routing(Frozen):
    long_context_tokens: Count = 4096
    """Above it a request goes to the profile of its model with the longest context."""
    prefer: dict[str, Strings] = {}
    """Source -> "gpu:N", "cpu" or profile names, best first. "default" is everyone else."""


class Mode(Frozen):
    start: TimeOfDay
    timezone: Annotated[str, AfterValidator(_timezone)] | None = None
    """IANA name; None is the host's."""
    profiles: Strings = ()
    """Empty: every profile that no other mode names."""


class ProfileFile(Frozen):
    """profiles/NAME.toml, as written."""

    model: Annotated[str, AfterValidator(_model_name)]
    weights: Annotated[Text, Field(min_length=1)]
    task: Task = "generate"
    device: Literal["gpu", "cpu"] = "gpu"
    gpus: Annotated[tuple[Gpu, ...], BeforeValidator(_tuple)] = ()
    max_model_len: Count | None = None
    gpu_memory_utilization: Share | None = None
    vram: Bytes | None = None
    memory: Bytes | None = None
    """What a CPU engine may take of host memory."""
    max_concurrent: Count = 4
    max_queue: Annotated[int, Field(ge=0)] = 32
    idle_ttl: SecondsOrNever = 1800.0
    """None: never stopped for being idle."""
    revision: Text | None = None
    args: Strings = ()
    env: Env = {}
    command: Command | None = None
    """Instead of engine.command."""


class Profile(ProfileFile):
    """How one model is served on given devices. `name` is the file's name."""

    name: str

    @property
    def tensor_parallel(self) -> int:
        """Ranks that each layer is split over: the GPUs, less those that pipeline stages take."""
        return max(1, len(self.gpus) // self.pipeline_parallel)

    @property
    def pipeline_parallel(self) -> int:
        given = option(self.args, "--pipeline-parallel-size", "-pp") or "1"
        return int(given) if re.fullmatch(r"[1-9]\d{0,3}", given) else 1


class Document(Frozen):
    """llmd.toml, as written."""

    server: Server = Server()
    engine: EngineDefaults = EngineDefaults()
    memory: Memory = Memory()
    restarts: Restarts = Restarts()
    keys: dict[str, Key] = {}
    routing: Routing = Routing()
    modes: dict[str, Mode] = {}


class Config(Document):
    """llmd.toml with its profiles, paths made absolute, free of contradictions."""

    path: Path
    profiles: dict[str, Profile] = {}
    """By name, sorted."""
    files: dict[str, Path] = {}
    """Profile name -> the file it was read from."""

    def profiles_in(self, mode: str) -> frozenset[str]:
        """The profiles that `mode` makes available. Raises KeyError for an unknown mode."""
        if named := self.modes[mode].profiles:
            return frozenset(named)
        return frozenset(self.profiles).difference(*(other.profiles for other in self.modes.values()))


def option(args: tuple[str, ...], *names: str) -> str | None:
    """The value of the first of `names` in a vLLM command line, "" for a bare flag, None where absent.

    vLLM takes `--flag value`, `--flag=value` and underscores for dashes.
    """
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag.replace("_", "-") in names:
            following = args[position + 1 : position + 2]
            return value if equals else next(iter(following), "")
    return None
