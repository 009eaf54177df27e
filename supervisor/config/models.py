"""The configuration as frozen models: what may be written, and the defaults. Durations are seconds, sizes bytes.

What a value may be is said in `values`; what one file contradicts in itself or another is `checks`' business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from supervisor.config.quantities import Bytes, Seconds, SecondsOrNever, TimeOfDay, wrong
from supervisor.config.values import (
    Command,
    Count,
    Cron,
    Drafting,
    Env,
    FilePath,
    Gpu,
    Host,
    KeyHash,
    Listen,
    ListOf,
    ModelName,
    Name,
    Share,
    Strings,
    Text,
    Timezone,
    Url,
)

GIB = 1 << 30
MIB = 1 << 20

Task = Literal["generate", "embed", "rerank", "classify", "pool", "transcribe"]
Priority = Literal["interactive", "batch"]
Hold = Literal["comment", "empty", "reasoning", "off"]
Scope = Literal["api", "read", "admin"]

DEFAULT_UTILIZATION = 0.92
"""vLLM's own default for --gpu-memory-utilization; always passed, so that its changes cannot surprise."""


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Server(Frozen):
    listen: Annotated[ListOf[Listen], Field(min_length=1)] = ("127.0.0.1:8000",)
    admin_socket: FilePath = Path("/run/llmd/llmd.sock")
    admin_group: str | None = None
    state_dir: FilePath = Path("/var/lib/llmd")
    profiles: FilePath = Path("profiles")
    max_wait: Seconds = 290.0
    """The longest a request is held for a model; common clients give up at 300 s."""
    drain: Seconds = 30.0
    header_timeout: Annotated[Seconds, Field(gt=0)] = 10.0
    """A connection that has not sent the whole head of a request by then is closed."""
    body_timeout: Annotated[Seconds, Field(gt=0)] = 10.0
    """In which at least 1 KiB more of a request's body must come."""
    client_timeout: Annotated[Seconds, Field(gt=0)] = 60.0
    """A client that takes nothing of its answer for so long is cut off."""
    request_timeout: Annotated[Seconds, Field(gt=0)] = 3600.0
    """From a request's arrival to the last byte of its answer."""
    max_body: Bytes = 64 * MIB
    hold: Hold = "comment"
    """What a stream is sent while its model loads: comments, empty chunks, progress as reasoning, or nothing."""
    hold_after: Annotated[Seconds, Field(gt=0)] = 1.0
    """A refusal that comes within keeps its HTTP status; then the head of a held stream is sent."""
    keepalive: Annotated[Seconds, Field(gt=0)] = 10.0
    """Between two signs of life while a stream is held; proxies and clients close what is silent."""
    llama_cpp: bool = False
    """llama.cpp's routes to load and unload models: for Open WebUI's buttons, and for everyone with a key."""
    engine_metrics: bool = False
    """Whether /metrics shows what every engine's vLLM tells of itself, too."""


class EngineDefaults(Frozen):
    command: Command = ("vllm", "serve")
    env: Env = {}
    start_timeout: Seconds = 600.0
    """Without progress in the engine's log: a slow download that moves is not cut off."""
    stop_grace: Seconds = 15.0
    settle_timeout: Seconds = 60.0
    health_interval: Seconds = 5.0
    sleep_timeout: Seconds = 60.0
    """For the answer to /sleep; its memory then has settle_timeout to come back."""
    wake_timeout: Seconds = 600.0
    """From asleep to the first answer; level 2 reads its weights again meanwhile."""
    stall_timeout: Seconds = 120.0
    """Healthy, with requests in flight, and no token for so long: it hangs, and is replaced."""
    connect_timeout: Annotated[Seconds, Field(gt=0)] = 5.0
    """For an engine to take a connection."""
    first_token_timeout: Seconds = 300.0
    """Until the first byte of a streamed answer."""
    token_timeout: Seconds = 120.0
    """Between two pieces of an answer."""
    answer_timeout: Seconds = 1800.0
    """Until an answer that is not streamed: nothing of it comes before its last token is made."""
    breaker_failures: Count = 5
    """Requests in a row that fail before their first byte, within breaker_window: the engine is replaced."""
    breaker_window: Annotated[Seconds, Field(gt=0)] = 30.0
    log_size: Bytes = 64 * MIB
    """Of an engine's log and the part kept of it before, together. 100 MB/s take a tenth more at most."""


class Memory(Frozen):
    margin: Bytes = 256 * MIB
    """Kept free on each GPU: NVML's total is not CUDA's."""
    host_floor: Bytes = 2 * GIB
    """Kept free of host memory by CPU engines."""
    max_age: Seconds = 15.0
    """An older reading admits no start."""
    residue: Bytes = 2 * GIB
    """What an engine is taken to keep of a GPU while it sleeps, until that was measured."""
    headroom: Bytes = 256 * MIB
    """What must be free on a GPU for a running engine to be given more requests: their activations need it."""


class Scheduling(Frozen):
    """Who waits for whom when not everything fits."""

    quantum: Seconds = 30.0
    """How long a busy model goes on once another model has waiters that need its place."""
    min_residency: Seconds = 0.0
    """How long after it became ready an idle engine keeps its place, unless a waiter's patience runs out.
    None by default: on six traces keeping idle engines made everybody wait longer (benchmarks/scheduling.py)."""
    patience_interactive: Seconds = 120.0
    patience_batch: Seconds = 300.0
    """Waited longer than its patience, a request has its model swapped in whatever that costs."""
    ageing: Seconds = 120.0
    """After this long in the queue batch is treated as interactive."""
    swaps_per_hour: Count = 60
    """Evictions of busy or wanted engines, per GPU; at the limit only patience that ran out swaps."""


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
    hash: KeyHash | None = None
    file: FilePath | None = None
    priority: Priority = "interactive"
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Its share of a model that several keys wait for, against the other keys' weights."""
    hold: Hold | None = None
    """Instead of server.hold."""
    scope: Scope = "api"
    """What it opens besides the API: with "read" the dashboard, with "admin" its buttons too."""

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
    sticky: SecondsOrNever = 1800.0
    """How long a conversation is remembered, which then goes where its beginning is cached; None: not at all."""
    linger: Seconds = 2.0
    """How long a request waits for that place, or for its first choice to finish loading, before another takes it."""
    prefer: dict[str, Strings] = {}
    """Source -> "gpu:N", "cpu" or profile names, best first. "default" is everyone else."""


class Peer(Frozen):
    """Another OpenAI-compatible server that takes requests for its models; the table's name is the peer's."""

    url: Url
    key_env: str | None = None
    key_file: FilePath | None = None
    models: Strings = ()
    """Of those that it lists, these alone; empty: all."""
    max_concurrent: Count = 8
    max_queue: Annotated[int, Field(ge=0)] = 32
    priority: Annotated[int, Field(ge=-100, le=100)] = -1
    """Against the 0 of this host's profiles: the higher is tried first."""
    spill: bool = True
    """Whether it also takes what this host's own profiles serve, when they are full or not loaded."""
    timeout: Annotated[Seconds, Field(gt=0)] = 300.0
    """Until the first byte of an answer."""
    interval: Annotated[Seconds, Field(gt=0)] = 10.0
    """Between two looks at its list of models."""

    @model_validator(mode="after")
    def _one_key(self) -> Peer:
        if self.key_env is not None and self.key_file is not None:
            raise wrong("a key is found in one place, not in key_env and key_file", "write one of them")
        return self


class Mode(Frozen):
    start: TimeOfDay
    timezone: Timezone | None = None
    """IANA name; None is the host's."""
    profiles: Strings = ()
    """Empty: every profile that no other mode names."""
    warm: Strings = ()
    """Profiles that are started when the mode begins, so that nobody waits for them."""
    drain: Seconds = 300.0
    """What requests in flight are given, when the mode begins, on engines that it does not have."""
    within: Seconds = 1800.0
    """The mode before comes back where `warm` is not ready so long after the beginning."""


class ProfileFile(Frozen):
    """profiles/NAME.toml, as written."""

    model: ModelName
    weights: Name
    task: Task = "generate"
    device: Literal["gpu", "cpu"] = "gpu"
    gpus: ListOf[Gpu] = ()
    max_model_len: Count | None = None
    gpu_memory_utilization: Share | None = None
    vram: Bytes | None = None
    memory: Bytes | None = None
    """What a CPU engine may take of host memory."""
    max_concurrent: Count = 4
    max_queue: Annotated[int, Field(ge=0)] = 32
    first_token_timeout: Seconds | None = None
    """Instead of engine.first_token_timeout."""
    idle_ttl: SecondsOrNever = 1800.0
    """None: never stopped for being idle."""
    warm: ListOf[Cron] = ()
    """When to start it although nobody asks: lines of cron, in the host's time zone."""
    pin: bool = False
    """Never evicted, never stopped for being idle."""
    finish_start: bool = True
    """A start goes on though everybody who waited for it has left: who gave up after a short time comes again, and
    would never find the model loaded otherwise. False: it is given up."""
    sleep: bool = False
    """Give up the GPU by vLLM's sleep mode where host memory allows, instead of stopping."""
    sleep_after: SecondsOrNever = None
    """Idle seconds until it sleeps; None: only when its place is needed."""
    lora: dict[ModelName, Name] = {}
    """Adapter -> its Hugging Face name or directory. Each can be asked for by name, as a model can."""
    batch_inputs: Count = 32
    """Most inputs of requests for embeddings that are merged into one; 1 merges none."""
    batch_wait: Seconds = 0.003
    """How long such a request waits for others, while one is at work already."""
    revision: Text | None = None
    tool_parser: Name | None = None
    """vLLM's --tool-call-parser: reads the calls of tools out of what the model writes."""
    tools: Literal["drop", "refuse", "pass"] = "drop"
    """What becomes of a request's tools where there is no parser: vLLM refuses them with 400."""
    reasoning_parser: Name | None = None
    chat_template: Name | None = None
    """A file, or the template itself."""
    speculative: Drafting | None = None
    """vLLM's --speculative-config."""
    allowed_media_domains: ListOf[Host] = ()
    """Hosts that images, audio and video may be fetched from; none: only data: URLs."""
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


class Activity(Frozen):
    """What is kept of requests that have ended."""

    keep: Seconds = 90 * 86400.0
    max_size: Annotated[Bytes, Field(ge=MIB)] = 256 * MIB


class Document(Frozen):
    """llmd.toml, as written."""

    server: Server = Server()
    engine: EngineDefaults = EngineDefaults()
    memory: Memory = Memory()
    scheduling: Scheduling = Scheduling()
    restarts: Restarts = Restarts()
    activity: Activity = Activity()
    keys: dict[str, Key] = {}
    routing: Routing = Routing()
    peers: dict[str, Peer] = {}
    modes: dict[str, Mode] = {}


class Config(Document):
    """llmd.toml with its profiles, paths made absolute, free of contradictions."""

    path: Path
    profiles: dict[str, Profile] = {}
    """By name, sorted."""
    files: dict[str, Path] = {}
    """Profile name -> the file it was read from."""

    @cached_property
    def named(self) -> Mapping[str, tuple[Profile, ...]]:
        """Every name that can be asked for -> the profiles that are meant: one by its own name, else all that serve
        the model or have the adapter."""
        found: dict[str, tuple[Profile, ...]] = {}
        for profile in self.profiles.values():
            for name in dict.fromkeys((profile.model, *profile.lora)):
                found[name] = (*found.get(name, ()), profile)
        return found | {name: (profile,) for name, profile in self.profiles.items()}

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
