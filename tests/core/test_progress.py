"""On the logs of real starts (tiny models, CPU), and on lines that only a GPU's start has."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from supervisor.core.devices import GIB, gib
from supervisor.core.progress import Progress, read_facts, read_progress, read_totals
from tests.core.world import CARD
from tests.standin.startlog import used

LOGS = Path(__file__).parent.parent / "standin" / "logs"
MODELS = ("chat", "embed", "rerank")


def lines(model: str) -> list[str]:
    return (LOGS / f"{model}.log").read_text(errors="replace").replace("\r", "\n").splitlines()


@pytest.mark.parametrize("model", MODELS)
def test_a_real_start_goes_forward_to_its_end(model: str) -> None:
    steps = [step for line in lines(model) if (step := read_progress(line))]
    percents = [step.percent for step in steps]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages[:3] == ["reading the model", "starting the engine", "loading weights"]
    assert stages[-3:] == ["engine ready", "opening the socket", "answering"]


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        ("chat", ("generate",)),
        ("embed", ("token_embed", "embed")),
        ("rerank", ("token_classify", "classify")),
    ],
)
def test_tasks_of_a_real_start(model: str, tasks: tuple[str, ...]) -> None:
    assert [facts["tasks"] for line in lines(model) if "tasks" in (facts := read_facts(line))] == [tasks]


def test_the_kv_cache_of_a_real_start() -> None:
    facts = {name: value for line in lines("chat") for name, value in read_facts(line).items()}
    assert facts["kv_cache_tokens"] == 52352
    assert facts["max_concurrency"] == 1.6


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Loading safetensors checkpoint shards:   0% Completed | 0/4",
            Progress("loading weights", 12),
        ),
        (
            "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:01, 1.3it/s]",
            Progress("loading weights", 36),
        ),
        ("Loading pt checkpoint shards: 100% Completed | 4/4", Progress("loading weights", 60)),
        (
            "INFO [gpu_model_runner.py:1] Model loading took 14.99 GiB memory and 3.2 seconds",
            Progress("weights loaded", 62),
        ),
        ("INFO [monitor.py:34] torch.compile took 22.31 s in total", Progress("compiling", 72)),
        (
            "INFO [backends.py:9] Directly load the compiled graph(s) for shape None from the cache",
            Progress("compiling", 72),
        ),
        ("INFO [gpu_worker.py:1] Available KV cache memory: 4.1 GiB", Progress("sizing the KV cache", 76)),
        (
            "Capturing CUDA graphs (decode, FULL):  25%|##5       | 1/4",
            Progress("capturing CUDA graphs", 83),
        ),
        ("INFO:     10.0.0.1 - 'POST /v1/chat/completions HTTP/1.1' 200 OK", None),
        ("50% of nothing", None),
        ("", None),
    ],
)
def test_lines(line: str, expected: Progress | None) -> None:
    assert read_progress(line) == expected


def test_facts_of_a_gpus_start() -> None:
    assert read_facts(
        "INFO [kv_cache_utils.py:1] GPU KV cache size: 47,840 tokens, "
        "Maximum concurrency for 32,768 tokens per request: 1.46x"
    ) == {"kv_cache_tokens": 47840, "max_concurrency": 1.46}
    assert read_facts("Model loading took 14.99 GiB memory and 3.25 seconds") == {
        "weights_gib": 14.99,
        "load_seconds": 3.25,
    }
    assert read_facts("Supported tasks: []") == {"tasks": ()}
    assert read_facts("Supported engines: none") == {}


SAYS = (
    "Free memory on device (23.3/23.58 GiB) on startup. Desired GPU memory utilization is (0.92, 21.69 GiB)."
)
LACKS = "ValueError: Free memory on device cuda:1 (20.9/94.97 GiB) on startup is less than desired GPU memory"


def most(size: float) -> int:
    """vLLM rounds to two decimals."""
    return math.ceil((size + 0.00499) * GIB)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"(EngineCore pid=7) INFO 11-23 09:45:25 [gpu_worker.py:1034] {SAYS}", {0: most(23.58)}),
        (f"(EngineCore_DP0 pid=7) INFO 11-23 09:45:25 [gpu_worker.py:1034] {SAYS}", {0: most(23.58)}),
        (f"(Worker_TP1 pid=7) INFO 11-23 09:45:25 [gpu_worker.py:1034] {SAYS}", {1: most(23.58)}),
        (f"(Worker_PP0_TP1_EP1 pid=7) INFO 11-23 09:45:25 [gpu_worker.py:1034] {SAYS}", {1: most(23.58)}),
        (f"(Worker_PP1_TP0 pid=7) INFO 11-23 09:45:25 [gpu_worker.py:1034] {SAYS}", {}),
        (f"(EngineCore_DP1 pid=7) INFO 11-23 09:45:25 [gpu_worker.py:1034] {SAYS}", {}),
        (f"(EngineCore pid=7) ERROR 11-23 09:45:24 [core.py:1510] {LACKS}", {1: most(94.97)}),
        (f"(Worker_PP1_TP0 pid=7) ERROR 11-23 09:45:24 [multiproc_executor.py:1] {LACKS}", {1: most(94.97)}),
        (f"(APIServer pid=7) INFO 11-23 09:45:25 [serving.py:1] {SAYS}", {}),
        (SAYS, {}),
        (
            "(EngineCore pid=7) INFO 11-23 09:45:25 [gpu_worker.py:760] Available KV cache memory: 5.11 GiB",
            {},
        ),
    ],
)
def test_what_cuda_counts_on_a_gpu(line: str, expected: dict[int, int]) -> None:
    assert read_totals([line]) == expected


@pytest.mark.parametrize("total", [CARD - 1, CARD - 431_226_880, 101_972_967_424, 85_017_755_648])
def test_what_is_read_is_never_less_than_what_was_meant(total: int) -> None:
    said = f"(EngineCore pid=1) INFO 11-23 09:45:25 [gpu_worker.py:1] Free memory on device (1.0/{round(total / GIB, 2)} GiB)"
    (read,) = read_totals([f"{said} on startup."]).values()
    assert total - (16 << 10) <= read <= total + GIB // 50
    assert gib(read) == gib(total)


def test_the_standins_start_tells_as_vllm_does() -> None:
    lines = [used(rank, 2, 20 * GIB, CARD, 0.5) for rank in range(2)]
    assert read_totals(lines) == {0: most(24.0), 1: most(24.0)}
