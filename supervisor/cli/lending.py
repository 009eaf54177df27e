"""`llmd lease`: memory for another program, for a while, or for as long as a command runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from supervisor.cli.client import Client
from supervisor.errors import OperatorError


class NoCommand(OperatorError):
    """The command that was to run under the loan cannot be started."""


async def run_under_loan(
    client: Client, wish: dict[str, Any], command: Sequence[str], say: Callable[[str], None]
) -> int:
    """Borrow, run `command`, give back; the command's exit code. The loan ends with this process, however it ends.

    The command sees the GPUs that it borrowed as CUDA_VISIBLE_DEVICES, unless that is set.
    """
    async with client.held_loan(wish | {"pid": os.getpid()}) as granted:
        say(granted["message"])
        cards = ",".join(str(gpu) for gpu in wish["gpus"])
        env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": cards} | os.environ
        try:
            process = await asyncio.create_subprocess_exec(*command, env=env)
        except OSError as error:
            raise NoCommand(f"cannot start {command[0]}: {error.strerror}") from None
        with _passed_on(process):
            code = await process.wait()
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _passed_on(process: asyncio.subprocess.Process) -> Any:
    """Ctrl-C is the command's to answer; the loan ends when it has."""
    loop = asyncio.get_running_loop()

    def pass_on(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, pass_on, number)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
