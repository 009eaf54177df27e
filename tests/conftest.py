"""On which event loop asynchronous tests run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from tests.daemon import Llmd

BOTH = ("test_invitation.py", "test_relay.py", "test_upstream.py")
"""What leans on how a loop's transports behave, on the daemon's own loop too."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return loops if item.path.name in BOTH else {"asyncio": loops["asyncio"]}


@pytest.fixture
def installed() -> Iterator[list[Llmd]]:
    """Daemons that a test installs and adds here; closed at its end, whatever became of them."""
    made: list[Llmd] = []
    yield made
    for llmd in made:
        llmd.close()
