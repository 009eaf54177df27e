"""What a Hugging Face hub tells of a model before anything is downloaded: its files, config.json, and the headers of
its weights by range requests. A few hundred KiB for a model of any size.

HF_ENDPOINT, HF_TOKEN (or the file that `hf auth login` writes), HF_HUB_OFFLINE and the proxies' variables are
minded as huggingface_hub minds them. A token goes to the endpoint alone: aiohttp drops it where a redirect leads to
another host.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from supervisor.errors import OperatorError
from supervisor.host.weights import (
    INDEX,
    JSON_LIMIT,
    TOKENIZER,
    header_length,
    json_object,
    pickled_files,
    tensors,
    weight_files,
)
from supervisor.planning.architecture import read_architecture
from supervisor.planning.checkpoint import Checkpoint, Tensor
from supervisor.planning.nature import Model

ENDPOINT = "https://huggingface.co"
TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10, sock_read=20)
CONNECTIONS = 8
FIRST = 256 << 10
"""Bytes asked for at first: most headers are shorter."""

_TRUE = {"1", "ON", "YES", "TRUE"}
_ERROR = "X-Error-Code"


async def describe(weights: str, revision: str | None, environ: Mapping[str, str]) -> Model:
    """The model called `weights` on the hub. Raises OperatorError, which says what to do."""
    if environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        raise OperatorError(
            f"{weights} is not on this host, and HF_HUB_OFFLINE forbids to ask the hub for it"
        )
    async with _Hub.open(weights, revision or "main", environ) as hub:
        try:
            return await hub.model()
        except TimeoutError as error:
            raise hub.unreachable("it does not answer") from error
        except aiohttp.ClientConnectorError as error:
            raise hub.unreachable(error.os_error.strerror or str(error.os_error)) from error
        except aiohttp.ClientError as error:
            raise hub.unreachable(str(error)) from error


def token(environ: Mapping[str, str]) -> str | None:
    """HF_TOKEN, else the file that HF_TOKEN_PATH names, else the one below HF_HOME."""
    if given := environ.get("HF_TOKEN", "").strip():
        return given
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    file = Path(environ.get("HF_TOKEN_PATH") or Path(home, "token")).expanduser()
    try:
        return file.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


class _Hub:
    """One model of one hub."""

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: str, weights: str, revision: str, known: bool
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._weights = weights
        self._revision = revision
        self._known = known

    @classmethod
    @asynccontextmanager
    async def open(cls, weights: str, revision: str, environ: Mapping[str, str]) -> AsyncIterator[_Hub]:
        endpoint = (environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        secret = token(environ)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        async with aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=TIMEOUT, trust_env=True
        ) as session:
            yield cls(session, endpoint, weights, revision, secret is not None)

    async def model(self) -> Model:
        sizes = await self._files()
        if "config.json" not in sizes:
            raise OperatorError(f"{self._page} has no config.json: vLLM serves no such model")
        config = await self._json("config.json")
        tokenizer = await self._json(TOKENIZER) if TOKENIZER in sizes else {}
        checkpoint = await self._checkpoint(config, sizes)
        return Model(self._weights, self._page, checkpoint, config, frozenset(sizes), tokenizer)

    def unreachable(self, why: str) -> OperatorError:
        instead = "see that the network or HF_ENDPOINT is right, or name a folder that holds the weights"
        return OperatorError(f"{self._endpoint} cannot be reached: {why}; {instead}")

    @property
    def _page(self) -> str:
        return f"{self._endpoint}/{self._weights}"

    async def _files(self) -> dict[str, int]:
        """Every file of the revision -> bytes, 0 where the hub does not tell."""
        revision = quote(self._revision, safe="")
        url = f"{self._endpoint}/api/models/{quote(self._weights)}/revision/{revision}?blobs=true"
        listed = json_object(self._page, await self._get(url)).get("siblings")
        if not isinstance(listed, list):
            raise OperatorError(f"{self._endpoint} tells no files of {self._weights}: is it a hub?")
        files = [entry for entry in listed if isinstance(entry, dict) and "rfilename" in entry]
        return {str(entry["rfilename"]): int(entry.get("size") or 0) for entry in files}

    async def _checkpoint(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> Checkpoint:
        architecture = read_architecture(config)
        index = await self._json(INDEX) if INDEX in sizes else None
        if names := weight_files(self._page, sizes, index):
            listed = await asyncio.gather(*map(self._header, names))
            return Checkpoint(architecture, tuple(tensor for file in listed for tensor in file))
        if lump := sum(sizes[name] for name in pickled_files(sizes)):
            return Checkpoint(architecture, lump=lump)
        raise OperatorError(f"{self._page} holds no weights in safetensors or .bin files")

    async def _header(self, name: str) -> tuple[Tensor, ...]:
        url = self._url(name)
        async with self._asked(url, (0, FIRST)) as reply:
            size = _size(reply)
            start = await _read(reply, FIRST)
        length = header_length(url, start, size)
        if (missing := length + 8 - len(start)) > 0:
            async with self._asked(url, (len(start), length + 8)) as reply:
                start += await _read(reply, missing)
        return tensors(url, start[8 : length + 8], size)

    async def _json(self, name: str) -> dict[str, Any]:
        return json_object(self._url(name), await self._get(self._url(name)))

    def _url(self, name: str) -> str:
        return f"{self._page}/resolve/{quote(self._revision, safe='')}/{quote(name)}"

    async def _get(self, url: str) -> bytes:
        async with self._asked(url) as reply:
            text = await _read(reply, JSON_LIMIT + 1)
        if len(text) > JSON_LIMIT:
            raise OperatorError(f"{url} is larger than {JSON_LIMIT >> 20} MiB")
        return text

    @asynccontextmanager
    async def _asked(
        self, url: str, span: tuple[int, int] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
        async with self._session.get(url, headers=headers) as reply:
            if reply.status not in (200, 206) or (span and span[0] and reply.status != 206):
                raise self._refusal(reply)
            yield reply

    def _refusal(self, reply: aiohttp.ClientResponse) -> OperatorError:
        """The hub hides what is private behind 401 as it does what is not there."""
        why = reply.headers.get(_ERROR, "")
        if why == "RevisionNotFound":
            return OperatorError(f"{self._page} has no revision {self._revision}")
        if why != "GatedRepo" and (reply.status == 404 or why == "RepoNotFound"):
            instead = "is its name right? If it is private, set HF_TOKEN"
            return OperatorError(f"there is no {self._page}; {instead}")
        if reply.status in (401, 403):
            instead = "the account of HF_TOKEN may not" if self._known else "set HF_TOKEN"
            return OperatorError(
                f"{self._page} is for accounts that accepted its terms: accept them there; {instead}"
            )
        return self.unreachable(f"it answered {reply.status} {reply.reason}")


async def _read(reply: aiohttp.ClientResponse, most: int) -> bytes:
    """At most so many bytes; a server that knows no ranges would send all of the weights."""
    found = bytearray()
    while len(found) < most and (piece := await reply.content.read(most - len(found))):
        found += piece
    if len(found) >= most and not reply.content.at_eof():
        reply.close()
    return bytes(found)


def _size(reply: aiohttp.ClientResponse) -> int:
    """Bytes of the whole file."""
    if reply.status == 206:
        total = reply.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdecimal() else 0
    return reply.content_length or 0
