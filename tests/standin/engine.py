"""A stand-in for `vllm serve`, so that a test of llmd has an engine in half a second, and a bad one at will.

  python engine.py serve MODEL --uds PATH [--served-model-name A B] [any flag of vllm serve]

It imitates vLLM 0.32 as llmd sees it, and tests/real/test_contract.py runs the same assertions on both:
- the process tree: the API server is this process, VLLM::EngineCore its child, and with tensor parallelism
  N VLLM::Worker_TP below that, all in one session. SIGKILL of the API server leaves the others alive; workers
  die with EngineCore; when EngineCore dies, streams end with an error and `[DONE]` and the API server exits 0.
- the socket: bound at once, so that a stale file is EADDRINUSE and exit 1, listening only when loaded; never
  unlinked.
- SIGTERM: once ready it aborts what runs and exits 0; the first one while loading is swallowed.
- the start log, recorded from the real thing; HTTP bodies, errors, SSE, VLLM_API_KEY on /v1 (answers.py).
- sleep mode, after vLLM's source and documentation alone: nothing here was seen on hardware (slumber.py).
- the memory of each card it may see, and the refusal to start where too little is free (vram.py).
Text, vectors and scores mean nothing, and a token is a word. STANDIN_* in the environment makes it slow or
bad: knobs.py lists how. GET /standin tells what it was asked. No process of it lives longer than LIFETIME.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from pathlib import Path

import startlog
import vram
from knobs import Flags, Knobs

LIFETIME = 900  # seconds: a test that forgets an engine leaves nothing for good


def main() -> None:
    flags, knobs = Flags.parse(sys.argv[1:]), Knobs.read()
    become("vllm")
    take_sigterm(knobs)
    listener = bind(flags.uds)
    loaded, tell = os.pipe()
    core = os.fork()
    if core == 0:
        listener.close()
        os.close(loaded)
        run_core(flags, knobs, tell)
    os.close(tell)
    sys.exit(serve(flags, knobs, listener, core, loaded))


def become(name: str) -> None:
    """A process's name, as ps shows it, and its end if it is forgotten; neither outlives a fork."""
    Path("/proc/self/comm").write_text(name)
    signal.alarm(LIFETIME)


def bind(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
    except OSError as error:
        startlog.say(f"OSError: {error}\n")
        sys.exit(1)
    return listener


def take_sigterm(knobs: Knobs) -> None:
    """While loading: the first so many are swallowed."""
    seen = 0

    def on_term(_number: int, _frame: object) -> None:
        nonlocal seen
        seen += 1
        if knobs.fork_storm:
            storm()
        elif seen >= knobs.loading_terms and not knobs.ignore_sigterm:
            end_children()
            os._exit(0)

    signal.signal(signal.SIGTERM, on_term)


def storm() -> None:
    for _ in range(20):
        run_away()


def run_away() -> None:
    """A grandchild in a session of its own that ignores SIGTERM."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 64)  # else it would keep the engine's socket listening
    become("runaway")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pause()
    os._exit(0)


def end_children() -> None:
    for pid in children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


# --- EngineCore and its workers ---


def run_core(flags: Flags, knobs: Knobs, tell: int) -> None:
    """Never returns. One byte into `tell` says that the model is loaded."""
    become("VLLM::EngineCore")
    take_sigterm(Knobs(loading_terms=1, ignore_sigterm=knobs.ignore_sigterm, fork_storm=knobs.fork_storm))
    try:
        load(flags, knobs, tell)
    except vram.Refused as refused:
        fail(f"ValueError: {refused}")
    os.write(tell, b"!")
    os.close(tell)
    if flags.tensor_parallel > 1:
        os.wait()  # vLLM does not go on without one of its workers
        end_children()
        os._exit(1)
    while True:
        signal.pause()


def load(flags: Flags, knobs: Knobs, tell: int) -> None:
    cards = vram.visible(flags.tensor_parallel)
    if flags.sleep_mode and not cards:
        fail("ValueError: Sleep mode is not supported on current platform.")
    lines, _ = startlog.split(flags.task, cuda=bool(cards), weights=knobs.weights)
    pause = knobs.load_seconds / len(lines)
    free = [card.free() for card in cards]
    for line in lines:
        if b"init engine" in line:
            for rank, card in enumerate(cards):
                startlog.say(startlog.used(rank, len(cards), free[rank], card.total, flags.utilization))
        startlog.say(line)
        if b"Initializing a V1 LLM engine" in line:
            refuse(flags, knobs, cards)
        if b"Loading weights took" in line:
            take_memory(flags, knobs, cards, tell)
        misbehave(knobs, line.decode())
        time.sleep(pause)


def refuse(flags: Flags, knobs: Knobs, cards: list[vram.Card]) -> None:
    if knobs.free_memory_refusal and not cards:
        raise vram.refusal(0, 20.9 * vram.GIB, 23.55 * vram.GIB, flags.utilization)
    for card in cards:
        card.check(flags.utilization, refuse=knobs.free_memory_refusal)


def take_memory(flags: Flags, knobs: Knobs, cards: list[vram.Card], tell: int) -> None:
    if knobs.oom:
        fail(startlog.OOM)
    if flags.tensor_parallel == 1:
        grow(flags, knobs, cards)
        return
    for rank in range(flags.tensor_parallel):
        if os.fork() == 0:
            os.close(tell)
            run_worker(flags, knobs, rank, cards[rank : rank + 1])


def grow(flags: Flags, knobs: Knobs, cards: list[vram.Card]) -> None:
    for step in range(1, knobs.vram_steps + 1):
        for card in cards:
            card.hold(card.total * flags.utilization * step / knobs.vram_steps)


def run_worker(flags: Flags, knobs: Knobs, rank: int, cards: list[vram.Card]) -> None:
    """Never returns. Dies with EngineCore, as vLLM's workers do through their death pipe."""
    become(f"VLLM::Worker_TP{rank}")
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if knobs.ignore_sigterm else signal.SIG_DFL)
    grow(flags, knobs, cards)
    while True:
        signal.pause()


def die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def misbehave(knobs: Knobs, line: str) -> None:
    if "Starting to load model" in line:
        if knobs.fork == "setsid":
            run_away()
        flood(knobs.flood)
    if stands_for(knobs.crash_at, line):
        fail(f"RuntimeError: the stand-in was told to crash at {knobs.crash_at!r}", knobs.exit_code)
    while stands_for(knobs.hang_at, line):
        signal.pause()


def stands_for(place: str, line: str) -> bool:
    """Whether `place` of a knob means this line; the other places that knobs name come after the load."""
    return place not in ("", "ready", "request") and place in line


def flood(mebibytes: int) -> None:
    for number in range(mebibytes):
        startlog.say((b"x" if number < mebibytes / 2 else os.urandom(1)) * (1 << 20))


def fail(message: str, code: int = 1) -> None:
    startlog.failure(message)
    end_children()
    os._exit(code)


# --- the API server ---


def serve(flags: Flags, knobs: Knobs, listener: socket.socket, core: int, loaded: int) -> int:
    """Serve until SIGTERM or the death of EngineCore, both of which end with 0. Returns the exit code."""
    # Imported here, while EngineCore loads: that one stays small.
    from aiohttp import web
    from server import Server, state
    from slumber import Slumber

    if not os.read(loaded, 1):
        _, status = os.waitpid(core, 0)
        return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1

    async def run() -> int:
        loop = asyncio.get_running_loop()
        dead = asyncio.Event()
        family = [core, *workers(core)]
        server = Server(
            flags,
            knobs,
            core_alive=lambda: not dead.is_set(),
            core_stopped=lambda: any(state(pid) == "T" for pid in family),
            kill_core=lambda: os.kill(core, signal.SIGKILL),
            slumber=Slumber(flags, knobs, holders(flags, core)),
        )
        watch = os.pidfd_open(core)
        loop.add_reader(watch, lambda: (dead.set(), loop.remove_reader(watch)))
        loop.add_signal_handler(signal.SIGTERM, lambda: end(knobs, server.ending))
        runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        if knobs.hang_at != "ready":
            await web.SockSite(runner, listener).start()
            for line in startlog.split(flags.task, cuda=False)[1]:
                startlog.say(line)
        if knobs.crash_at == "ready":
            return knobs.exit_code
        ended = [asyncio.create_task(event.wait()) for event in (dead, server.ending)]
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.cancel()
        await runner.cleanup()
        return 0

    code = asyncio.run(run())
    startlog.say(
        "(APIServer pid=1) INFO 11-23 09:45:25 [launcher.py:254] [shutdown] API server: shutdown triggered\n"
    )
    end_children()
    return code


def holders(flags: Flags, core: int) -> list[tuple[vram.Card, int]]:
    """Which process holds memory of which card."""
    pids = sorted(workers(core)) or [core]
    return list(zip(vram.visible(flags.tensor_parallel), pids, strict=False))


def workers(core: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{core}/task/{core}/children").read_text().split()]


def end(knobs: Knobs, ending: asyncio.Event) -> None:
    if knobs.fork_storm:
        storm()
    elif not knobs.ignore_sigterm:
        ending.set()


if __name__ == "__main__":
    main()
