"""The real nvidia-ml-py against the stand-in libnvidia-ml.so.1."""

from __future__ import annotations

import asyncio
import getpass
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.core.devices import GIB, MIB, Reading, Survey
from supervisor.host import nvml
from supervisor.host.gpus import Gpus
from tests.standin.nvml import FakeGpus, build, preload

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="the stand-in NVML needs a C compiler (cc)"
)

PROGRAM = """
import asyncio
from supervisor.host.gpus import Gpus
async def main():
    gpus = Gpus()
    gpus.start(lambda survey: None)
    survey = await gpus.read()
    gpus.close()
    print(survey.trouble, [reading.device for reading in survey.readings])
asyncio.run(main())
"""

Asking = Callable[[], Awaitable[Survey]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def cards(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpus]:
    preload(library)
    cards = FakeGpus(tmp_path / "cards")
    monkeypatch.setenv("LLMD_NVML_DIR", str(cards.directory))
    yield cards
    FakeGpus(cards.directory)  # as new: nothing hangs any more
    join()


def join() -> None:
    """Wait for the threads of all closed Gpus."""
    for thread in threading.enumerate():
        if thread.name.startswith("nvml"):
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
async def gpus(cards: FakeGpus) -> AsyncIterator[Gpus]:
    """Surveys only when asked, so that each test says when a reading is taken."""
    gpus = Gpus(interval=3600)
    gpus.start(lambda survey: None)
    yield gpus
    gpus.close()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's process."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


async def until(holds: Callable[[Survey], bool], ask: Asking, seconds: float = 5.0) -> Survey:
    async with asyncio.timeout(seconds):
        while not holds(survey := await ask()):
            pass  # each asking awaits a survey of its own
    return survey


def healthy(reading: Reading) -> bool:
    return reading.trouble is None and reading.total == reading.used + reading.free == 24 * GIB


async def test_two_cards_are_told_apart(cards: FakeGpus, gpus: Gpus) -> None:
    cards.card(0, reserved=400 * MIB)
    survey = await gpus.read()
    first, second = survey.readings
    assert survey.trouble is None
    assert survey.driver == "580.0"
    assert survey.holders_known
    assert (first.device, first.index, first.pci) == (cards.uuid(0), 0, "00000000:01:00.0")
    assert (second.device, second.index, second.pci) == (cards.uuid(1), 1, "00000000:02:00.0")
    assert first.name == "NVIDIA GeForce RTX 4090"
    assert healthy(first)
    assert healthy(second)


async def test_memory_the_driver_reserves_is_used(
    cards: FakeGpus, gpus: Gpus, sleeper: subprocess.Popen[bytes]
) -> None:
    cards.card(0, reserved=400 * MIB)
    cards.foreign(sleeper.pid, 0, 4 * GIB)
    first, second = (await gpus.read()).readings
    assert first.used == 4 * GIB + 400 * MIB
    assert first.free == 20 * GIB - 400 * MIB
    assert second.used == 0


async def test_other_peoples_processes_have_pid_name_and_user(
    cards: FakeGpus, gpus: Gpus, sleeper: subprocess.Popen[bytes]
) -> None:
    cards.foreign(sleeper.pid, 0, 4 * GIB)
    # Until it has called exec, a child still bears the name of its parent.
    survey = await until(lambda survey: survey.readings[0].holders[0].name == "sleep", gpus.read)
    (holder,) = survey.readings[0].holders
    assert (holder.pid, holder.used, holder.user) == (sleeper.pid, 4 * GIB, getpass.getuser())
    assert survey.readings[1].holders == ()


async def test_a_process_that_computes_and_draws_is_counted_once(
    cards: FakeGpus, gpus: Gpus, sleeper: subprocess.Popen[bytes]
) -> None:
    cards.foreign(sleeper.pid, 0, GIB, kind="CG")
    cards.foreign(os.getpid(), 0, 2 * GIB, kind="G")
    holders = (await gpus.read()).readings[0].holders
    assert {holder.pid: holder.used for holder in holders} == {sleeper.pid: GIB, os.getpid(): 2 * GIB}


async def test_a_process_hidden_from_us_stays_nameless(
    cards: FakeGpus, gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards.foreign(os.getpid(), 0, GIB)

    def denied(pid: int) -> psutil.Process:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", denied)
    (holder,) = (await gpus.read()).readings[0].holders
    assert (holder.pid, holder.used, holder.name, holder.user) == (os.getpid(), GIB, "?", "?")


async def test_memory_of_a_killed_process_comes_back(
    cards: FakeGpus, gpus: Gpus, sleeper: subprocess.Popen[bytes]
) -> None:
    cards.foreign(sleeper.pid, 0, 4 * GIB)
    assert (await gpus.read()).readings[0].used == 4 * GIB
    sleeper.kill()
    survey = await until(lambda survey: survey.readings[0].used == 0, gpus.read)
    assert survey.readings[0].holders == ()


async def test_memory_may_come_back_late(
    cards: FakeGpus, gpus: Gpus, sleeper: subprocess.Popen[bytes]
) -> None:
    cards.card(0, linger=0.3)
    cards.foreign(sleeper.pid, 0, 4 * GIB)
    sleeper.kill()
    died = time.monotonic()
    late = await until(lambda survey: survey.readings[0].holders == (), gpus.read)
    assert late.readings[0].used == 4 * GIB
    await until(lambda survey: survey.readings[0].used == 0, gpus.read)
    assert time.monotonic() - died >= 0.3


async def test_a_card_without_memory_of_its_own_is_unified(
    cards: FakeGpus, gpus: Gpus, sleeper: subprocess.Popen[bytes]
) -> None:
    cards.card(0, memory="not_supported")
    cards.foreign(sleeper.pid, 0, GIB)
    first, second = (await gpus.read()).readings
    assert (first.unified, first.trouble) == (True, None)
    assert (first.total, first.used, first.free) == (0, 0, 0)
    assert first.holders[0].pid == sleeper.pid
    assert not second.unified
    assert healthy(second)


@pytest.mark.parametrize(("memory", "trouble"), [("lost", "GPU is lost"), ("unknown", "NVML: Unknown Error")])
async def test_a_failing_card_is_told_under_its_own_name(
    cards: FakeGpus, gpus: Gpus, memory: str, trouble: str
) -> None:
    await gpus.read()
    cards.card(0, memory=memory)
    survey = await gpus.read()
    first, second = survey.readings
    assert (first.device, first.index, first.name) == (cards.uuid(0), 0, "NVIDIA GeForce RTX 4090")
    assert (first.trouble, first.unified, first.free) == (trouble, False, 0)
    assert survey.trouble is None
    assert healthy(second)


async def test_a_lost_card_may_return(cards: FakeGpus, gpus: Gpus) -> None:
    await gpus.read()
    cards.card(0, memory="lost")
    assert (await gpus.read()).readings[0].trouble == "GPU is lost"
    cards.card(0, memory="ok")
    assert healthy((await gpus.read()).readings[0])


async def test_a_card_that_was_never_read_is_told_by_its_index(cards: FakeGpus) -> None:
    cards.card(1, memory="lost")
    gpus = Gpus(interval=3600)
    gpus.start(lambda survey: None)
    first, second = (await gpus.read()).readings
    gpus.close()
    assert healthy(first)
    assert (second.device, second.index, second.trouble) == ("gpu:1", 1, "GPU is lost")


async def test_a_card_that_disappears_is_not_forgotten(cards: FakeGpus, gpus: Gpus) -> None:
    await gpus.read()
    gone, left = cards.uuid(0), cards.uuid(1)
    cards.remove(0)
    survey = await gpus.read()
    assert {reading.device: reading.trouble for reading in survey.readings} == {
        left: None,
        gone: "GPU is gone",
    }
    assert survey.readings[0].index == 0
    # Two cards now claim index 0: it is the one still there that fails.
    cards.card(0, memory="lost")
    troubles = {reading.device: reading.trouble for reading in (await gpus.read()).readings}
    assert troubles == {left: "GPU is lost", gone: "GPU is gone"}


@pytest.mark.parametrize("processes", ["not_supported", "no_permission", "unsized"])
async def test_processes_that_the_driver_does_not_tell_are_said_to_be_unknown(
    cards: FakeGpus, gpus: Gpus, sleeper: subprocess.Popen[bytes], processes: str
) -> None:
    cards.foreign(sleeper.pid, 0, GIB)
    assert (await gpus.read()).holders_known
    cards.card(0, processes=processes)
    survey = await gpus.read()
    assert not survey.holders_known
    assert survey.readings[0].used == GIB
    listed = [(holder.pid, holder.used) for holder in survey.readings[0].holders]
    assert listed == ([(sleeper.pid, None)] if processes == "unsized" else [])


async def test_an_old_driver_tells_memory_but_not_processes(
    cards: FakeGpus, gpus: Gpus, sleeper: subprocess.Popen[bytes]
) -> None:
    cards.host(api="old")
    cards.card(0, reserved=400 * MIB)
    cards.foreign(sleeper.pid, 0, 4 * GIB)
    survey = await gpus.read()
    assert survey.readings[0].used == 4 * GIB + 400 * MIB
    assert healthy(survey.readings[0])
    assert not survey.holders_known


async def test_sensors(cards: FakeGpus, gpus: Gpus) -> None:
    cards.card(0, utilization=37, temperature=61, power=212500)
    first, second = (await gpus.read()).readings
    assert (first.utilization, first.temperature, first.power) == (0.37, 61, 212.5)
    assert (second.utilization, second.temperature, second.power) == (None, None, None)


async def test_the_driver_is_opened_again_after_a_reload(cards: FakeGpus, gpus: Gpus) -> None:
    await gpus.read()
    cards.host(generation=1)
    survey = await gpus.read()
    assert survey.trouble == "NVML: Uninitialized"
    assert [reading.trouble for reading in survey.readings] == ["NVML: Uninitialized"] * 2
    survey = await gpus.read()
    assert survey.trouble is None
    assert all(map(healthy, survey.readings))


async def test_a_driver_that_does_not_fit_its_library_is_tried_again(cards: FakeGpus) -> None:
    cards.host(init="driver_mismatch")
    gpus = Gpus(interval=0.01)
    gpus.start(lambda survey: None)
    survey = await gpus.read()
    assert survey.trouble is not None
    assert "driver/library version mismatch" in survey.trouble
    assert survey.readings == ()
    cards.host(init="ok")
    await until(lambda survey: len(survey.readings) == 2 and survey.trouble is None, gpus.read)
    gpus.close()


async def test_nvml_hanging_does_not_hold_up_the_loop(cards: FakeGpus) -> None:
    gpus = Gpus(interval=3600, clock=itertools.count(1).__next__)
    gpus.start(lambda survey: None)
    before = await gpus.read()
    cards.card(1, hang=60)
    lag = asyncio.create_task(worst_lag())
    begun = time.monotonic()
    assert await gpus.read(timeout=0.4) is before
    assert 0.3 < time.monotonic() - begun < 3
    begun = time.monotonic()
    gpus.close()
    assert time.monotonic() - begun < 0.1
    lag.cancel()
    assert await lag < 0.1


async def worst_lag() -> float:
    """The longest that this task was kept waiting past its time, in seconds, until it is cancelled."""
    worst = 0.0
    try:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.005)
            worst = max(worst, time.monotonic() - begun - 0.005)
    except asyncio.CancelledError:
        return worst


async def test_a_reading_asked_for_during_a_survey_is_begun_after_it(cards: FakeGpus) -> None:
    begun = threading.Semaphore(0)
    ticks = itertools.count(1)

    def clock() -> float:
        begun.release()
        return next(ticks)

    cards.card(0, hang=60)
    gpus = Gpus(interval=3600, clock=clock)
    gpus.start(lambda survey: None)
    assert await asyncio.to_thread(begun.acquire, timeout=5)
    asked = asyncio.create_task(gpus.read())
    await asyncio.sleep(0)  # the question is put while the first survey hangs
    cards.card(0, hang=0)
    assert (await asked).at == 2
    gpus.close()


async def test_concurrent_reads_share_a_survey(cards: FakeGpus) -> None:
    surveys: list[Survey] = []
    gpus = Gpus(interval=3600)
    gpus.start(surveys.append)
    await gpus.read()
    before = len(surveys)
    answers = await asyncio.gather(*(gpus.read() for _ in range(50)))
    gpus.close()
    # More than one where the thread happened to begin one while the readers were still asking.
    assert 1 <= len(surveys) - before <= 5
    assert all(answer in surveys[before:] for answer in answers)


async def test_surveys_come_unasked_and_on_the_loop(cards: FakeGpus) -> None:
    threads: list[threading.Thread] = []
    enough = asyncio.Event()

    def on_survey(survey: Survey) -> None:
        threads.append(threading.current_thread())
        if len(threads) == 3:
            enough.set()

    gpus = Gpus(interval=0.01)
    gpus.start(on_survey)
    await asyncio.wait_for(enough.wait(), 5)
    gpus.close()
    assert set(threads) == {threading.current_thread()}


async def test_nothing_is_told_after_close(cards: FakeGpus) -> None:
    cards.card(0, hang=60)
    surveys: list[Survey] = []
    gpus = Gpus(interval=3600)
    gpus.start(surveys.append)
    waiting = asyncio.create_task(gpus.read(timeout=5))
    await asyncio.sleep(0)
    gpus.close()
    assert "not been read yet" in str((await waiting).trouble)
    cards.card(0, hang=0)
    await asyncio.to_thread(join)
    await asyncio.sleep(0)  # what the thread posted in the end is delivered here
    assert "not been read yet" in str((await gpus.read()).trouble)
    assert surveys == []


# Errors that the driver reports


class Listener:
    """Gpus that are read only when asked, and what they told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.gpus = Gpus(interval=3600)
        self.gpus.start(lambda survey: None, lambda device, xid: self.told.put_nowait((device, xid)))

    async def next(self) -> tuple[str, int]:
        async with asyncio.timeout(5):
            return await self.told.get()


@pytest.fixture
async def listener(cards: FakeGpus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Listener]:
    monkeypatch.setattr(nvml, "LISTEN_AGAIN", 0.05)
    made = Listener()
    yield made
    made.gpus.close()


async def test_errors_are_told_in_order_with_their_card(cards: FakeGpus, listener: Listener) -> None:
    cards.xid(1, 31)
    cards.xid(0, 79)
    assert [await listener.next(), await listener.next()] == [(cards.uuid(1), 31), (cards.uuid(0), 79)]


async def test_waiting_for_an_error_holds_up_no_reading(
    cards: FakeGpus, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "_PATIENCE", 60_000)
    cards.xid(0, 13)
    await listener.next()  # the next wait is as long as is allowed
    for _ in range(3):
        assert healthy((await listener.gpus.read(timeout=2)).readings[0])
    cards.xid(0, 13)
    assert await listener.next() == (cards.uuid(0), 13)
    listener.gpus.close()
    cards.xid(0, 13)  # ends the last wait


async def test_a_card_that_reports_nothing_leaves_the_others_heard(cards: FakeGpus) -> None:
    cards.card(0, events="not_supported")
    listener = Listener()
    cards.xid(1, 63)
    assert await listener.next() == (cards.uuid(1), 63)
    listener.gpus.close()


async def test_a_lost_card_silences_no_other_and_is_heard_again(cards: FakeGpus, listener: Listener) -> None:
    cards.card(0, memory="lost")
    cards.xid(1, 45)
    assert await listener.next() == (cards.uuid(1), 45)
    cards.card(0, memory="ok")
    cards.xid(0, 79)
    assert await listener.next() == (cards.uuid(0), 79)


async def test_a_driver_that_was_reloaded_is_listened_to_anew(cards: FakeGpus, listener: Listener) -> None:
    cards.xid(0, 13)
    await listener.next()
    cards.host(generation=1)
    cards.xid(0, 31)
    await until(lambda survey: survey.trouble is None, listener.gpus.read)
    assert await listener.next() == (cards.uuid(0), 31)


def run(environment: dict[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.strip()


def test_another_program_reads_the_stand_in(library: Path, tmp_path: Path) -> None:
    cards = FakeGpus(tmp_path)
    assert run(cards.env(library)) == f"None {[cards.uuid(0), cards.uuid(1)]}"


def test_a_missing_library_is_said_plainly(tmp_path: Path) -> None:
    # A file that is no library, found first: so this holds on a host that has the real one, too.
    (tmp_path / "libnvidia-ml.so.1").touch()
    answer = run({"LD_LIBRARY_PATH": str(tmp_path)})
    assert answer == "no NVIDIA driver: libnvidia-ml.so.1 was not found []"
