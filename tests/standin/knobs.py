"""How a stand-in engine behaves and misbehaves: its command line as `vllm serve` takes it, and STANDIN_* knobs."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Knobs:
    """Each field is read from the environment as STANDIN_<FIELD IN CAPITALS>; absent ones keep their default."""

    load_seconds: float = 0.3  # from start to listening
    tokens_per_second: float = 0.0  # 0: as fast as can be
    tokens: int = 0  # length of each answer; 0: as many as max_tokens (16 where that is absent)
    crash_at: str = ""  # part of a log line | "ready" | "token:N" (EngineCore dies after N tokens)
    exit_code: int = 1  # of crash_at's first two kinds; the third ends with 0, as in vLLM
    hang_at: str = ""  # part of a log line | "ready" (never listens) | "request" (never answers)
    reading_seconds: float = 0.0  # a stream is silent behind its head for so long, as by a long prompt
    stop_at_token: int = 0  # the stream falls silent after so many tokens
    die_at_token: int = 0  # SIGKILL of the API server after so many tokens
    loading_terms: int = 2  # SIGTERMs it takes while loading: vLLM swallows the first
    ignore_sigterm: bool = False  # by every process
    oom: bool = False  # CUDA out of memory while loading
    free_memory_refusal: bool = False  # refuse as though the card were full
    vram_steps: int = 4  # the memory is taken in so many steps while loading
    fork: str = ""  # "setsid": one descendant in a session of its own that ignores SIGTERM
    fork_storm: bool = False  # SIGTERM makes 20 such descendants and nothing else
    flood: int = 0  # MiB of junk in the log while loading: a long line, then binary
    oom_at_token: int = 0  # EngineCore runs out of memory after so many tokens: its log line, then its death
    weights: float = 14.99  # GiB, as its log says of a card
    sleep_residue: float = 1.5  # GiB that it keeps of each card asleep
    sleep: str = ""  # what /sleep does instead: "keeps" (200, nothing freed) | "fails" (500) | "hangs"
    wake: str = ""  # what /wake_up does instead: "fails" (500) | "hangs"
    junk: str = ""  # what completions answer instead of HTTP: status | length | chunk | endless
    good_first: int = (
        0  # so many requests are served before `junk`, or the silence of `hang_at`: a first probe
    )

    @classmethod
    def read(cls, env: dict[str, str] | None = None) -> Knobs:
        env = dict(os.environ) if env is None else env
        found = {}
        for knob in fields(cls):
            if text := env.get(f"STANDIN_{knob.name.upper()}"):
                found[knob.name] = (
                    text not in ("0", "false") if knob.type == "bool" else KINDS[knob.type](text)
                )
        return cls(**found)


KINDS = {"float": float, "int": int, "str": str}


@dataclass(frozen=True)
class Flags:
    """What the stand-in understands of `vllm serve MODEL ...`; every other flag is taken and ignored."""

    model: str
    uds: str
    names: list[str]
    task: str  # chat | embed | rerank | classify | speech
    window: int  # tokens of prompt and answer together
    utilization: float
    tensor_parallel: int
    max_num_seqs: int
    api_key: str
    sleep_mode: bool = False
    adapters: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, argv: list[str]) -> Flags:
        parser = argparse.ArgumentParser("vllm", allow_abbrev=False)
        parser.add_argument("command", choices=["serve"])
        parser.add_argument("model")
        parser.add_argument("--uds", required=True)
        parser.add_argument("--served-model-name", nargs="+")
        parser.add_argument("--max-model-len", default="auto")
        parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
        parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
        parser.add_argument("--max-num-seqs", type=int, default=256)
        parser.add_argument("--runner", choices=["auto", "generate", "pooling"], default="auto")
        parser.add_argument("--convert", default="auto")
        parser.add_argument("--enable-sleep-mode", action="store_true")
        parser.add_argument("--enable-lora", action="store_true")
        parser.add_argument("--lora-modules", nargs="+", default=[])
        known, _ignored = parser.parse_known_args(argv)
        pooling = {"embed": "embed", "classify": "classify"}.get(known.convert, "rerank")
        # vLLM reads the architecture in config.json; here the name must do.
        task = pooling if known.runner == "pooling" else "speech" if "whisper" in known.model else "chat"
        return cls(
            model=known.model,
            uds=known.uds,
            names=known.served_model_name or [known.model],
            task=task,
            window=tokens(known.max_model_len, 32768 if task == "chat" else 512),
            utilization=known.gpu_memory_utilization,
            tensor_parallel=known.tensor_parallel_size,
            max_num_seqs=known.max_num_seqs,
            api_key=os.environ.get("VLLM_API_KEY", ""),
            sleep_mode=known.enable_sleep_mode,
            adapters=dict(module.split("=", 1) for module in known.lora_modules if known.enable_lora),
        )


def tokens(text: str, default: int) -> int:
    """A number of tokens as --max-model-len takes it: 8192, 8k, 8K (= 8192) or auto."""
    if text in ("auto", "-1"):
        return default
    scale = {"k": 1000, "K": 1024}.get(text[-1], 1)
    return int(float(text.rstrip("kK")) * scale)
