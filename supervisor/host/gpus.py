"""GPUs as their driver reports them, to an event loop.

An NVML call can hang for minutes inside a sick driver, and nothing can interrupt it. So NVML has daemon threads to
itself, one that reads and one that waits for errors (XID); the event loop only ever sees finished surveys, and each
tells its age by `at`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from supervisor.core.devices import Survey
from supervisor.host import nvml


class Gpus:
    """NVML on a thread of its own; a reading never blocks the event loop."""

    def __init__(self, *, interval: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Survey every `interval` seconds, and whenever `read` asks; `clock` (monotonic seconds) dates them."""
        self._interval = interval
        self._clock = clock
        self._latest = Survey(trouble="the GPUs have not been read yet")
        self._begun = 0  # written by the thread alone: how many surveys it has begun
        self._closed = False
        self._wanted = threading.Event()
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_survey: Callable[[Survey], None] | None = None
        self._ended = threading.Event()

    def start(
        self, on_survey: Callable[[Survey], None], on_xid: Callable[[str, int], None] | None = None
    ) -> None:
        """Begin to survey, and to listen for errors: `on_xid` is told the device and the number.

        Call inside a running loop, once; both are called on that loop.
        """
        self._loop = asyncio.get_running_loop()
        self._on_survey = on_survey
        threading.Thread(target=self._run, args=(self._loop,), name="nvml", daemon=True).start()
        if on_xid is not None:
            args = self._loop, on_xid
            threading.Thread(target=self._listen, args=args, name="nvml xid", daemon=True).start()

    async def read(self, timeout: float = 5.0) -> Survey:
        """A survey begun after this call; after `timeout` seconds the latest one, whose `at` tells its age."""
        if self._loop is None or self._closed:
            return self._latest
        # A survey under way may have read its memory before the caller's reason to ask: wait for the next.
        finished = self._awaited.setdefault(self._begun + 1, self._loop.create_future())
        self._wanted.set()
        await asyncio.wait([finished], timeout=timeout)
        return self._latest

    def close(self) -> None:
        """Stop surveying. Never waits for NVML: a thread that hangs in it dies with the process."""
        self._closed = True
        self._ended.set()
        self._wanted.set()
        self._release(self._begun + 1)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        session = nvml.Session()
        while True:
            self._wanted.clear()  # before looking at _closed, or the wake-up of close() could be lost
            if self._closed:
                break
            self._begun += 1
            survey = session.survey(self._clock())
            try:
                loop.call_soon_threadsafe(self._deliver, self._begun, survey)
            except RuntimeError:  # the loop was closed without us: nobody is left to tell
                break
            self._wanted.wait(self._interval)
        session.close()

    def _listen(self, loop: asyncio.AbstractEventLoop, on_xid: Callable[[str, int], None]) -> None:
        alarm = nvml.Alarm()
        while not self._closed:
            found = alarm.wait()
            try:
                for device, number in found:
                    loop.call_soon_threadsafe(self._tell, on_xid, device, number)
            except RuntimeError:  # the loop was closed without us
                break
            if not alarm.listens:
                self._ended.wait(nvml.LISTEN_AGAIN)
        alarm.close()

    def _tell(self, on_xid: Callable[[str, int], None], device: str, number: int) -> None:
        if not self._closed:
            on_xid(device, number)

    def _deliver(self, number: int, survey: Survey) -> None:
        if self._closed or self._on_survey is None:
            return
        self._latest = survey
        self._release(number)
        self._on_survey(survey)

    def _release(self, number: int) -> None:
        for waited in [key for key in self._awaited if key <= number]:
            self._awaited.pop(waited).set_result(None)
