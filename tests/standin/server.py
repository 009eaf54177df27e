"""The HTTP side of a stand-in engine: routes, streams, the key, the counters that tests read at GET /standin."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import answers
import apis
import startlog
from aiohttp import web
from answers import Completion, Fault, Json
from apis import AnthropicFault
from knobs import Flags, Knobs
from slumber import Slumber

JUNK = {
    "status": b"NOT HTTP AT ALL\r\n\r\n\x00\xff",
    "length": b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{",
    "chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\ndata",
    "endless": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
}
POOLING = {"/v1/embeddings": answers.embeddings}
POOLING |= dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), answers.rerank)
POOLING |= dict.fromkeys(("/score", "/v1/score"), answers.score)
POOLING |= {"/classify": answers.classes, "/pooling": answers.pooling}
EMBED_ALONE, CLASSIFY_ALONE = {"/v1/embeddings"}, {"/classify"}


@dataclass
class Counters:
    received: int = 0
    finished: int = 0
    aborted: int = 0
    refused: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prompts: list[str] = field(default_factory=list)


class Server:
    """`core_alive` and `core_stopped` tell of the processes that compute; `kill_core` ends them."""

    def __init__(
        self,
        flags: Flags,
        knobs: Knobs,
        core_alive: Callable[[], bool],
        core_stopped: Callable[[], bool],
        kill_core: Callable[[], None],
        slumber: Slumber,
    ) -> None:
        self.flags, self.knobs = flags, knobs
        self.core_alive, self.core_stopped, self.kill_core = core_alive, core_stopped, kill_core
        self.slumber = slumber
        self.counters = Counters()
        self.ending = asyncio.Event()  # SIGTERM: what runs is aborted
        self.responses: dict[str, Json] = {}
        self.seats = asyncio.Semaphore(flags.max_num_seqs)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self.guard], client_max_size=1 << 28)
        get, post = app.router.add_get, app.router.add_post
        get("/health", self.health)
        get("/ping", self.health)
        get("/version", self.version)
        get("/metrics", self.metrics)
        get("/standin", self.standin)
        get("/v1/models", self.models)
        post("/tokenize", self.tokenize)
        post("/detokenize", self.detokenize)
        if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            self.slumber.add_to(app)
        if self.flags.task == "chat":
            post("/v1/chat/completions", self.complete)
            post("/v1/completions", self.complete)
            post("/v1/responses", self.complete)
            get("/v1/responses/{id}", self.kept)
            post("/v1/responses/{id}/cancel", self.cancel)
            post("/v1/messages", self.complete)
            post("/v1/messages/count_tokens", self.count_tokens)
        if self.flags.task == "speech":
            post("/v1/audio/transcriptions", self.hear)
            post("/v1/audio/translations", self.hear)
            get("/v1/realtime", self.listen)
        closed = {"embed": CLASSIFY_ALONE, "rerank": EMBED_ALONE, "classify": EMBED_ALONE}
        for path in POOLING:
            if self.flags.task in closed and path not in closed[self.flags.task]:
                post(path, self.pool)
        return app

    @web.middleware
    async def guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Key first, then route, then body: the order in which vLLM refuses."""
        try:
            if request.path.startswith("/v1/") and not self.knows_key(request):
                return web.json_response(answers.UNAUTHORIZED, status=401)
            return await handler(request)
        except web.HTTPNotFound:
            return web.json_response(answers.NOT_FOUND, status=404)
        except web.HTTPMethodNotAllowed:
            return web.json_response({"detail": "Method Not Allowed"}, status=405)
        except (Fault, AnthropicFault) as fault:
            self.counters.refused += 1
            return web.json_response(fault.body, status=fault.status)

    def knows_key(self, request: web.Request) -> bool:
        key = self.flags.api_key
        return not key or request.headers.get("Authorization") == f"Bearer {key}"

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.core_alive() else 503)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(
            answers.models(self.flags.names, self.flags.model, self.flags.window, self.flags.adapters)
        )

    async def standin(self, request: web.Request) -> web.Response:
        return web.json_response(asdict(self.counters) | self.slumber.counts | {"pid": os.getpid()})

    async def metrics(self, request: web.Request) -> web.Response:
        counters = self.counters
        running = min(counters.in_flight, self.flags.max_num_seqs)
        waiting = counters.in_flight - running
        tokens = counters.prompt_tokens, counters.generated_tokens
        return web.Response(text=answers.metrics(self.flags.names[0], running, waiting, *tokens))

    async def tokenize(self, request: web.Request) -> web.Response:
        number = answers.count(answers.prompt_of(await read(request)))
        return web.json_response(
            {"count": number, "max_model_len": self.flags.window, "tokens": list(range(number))}
        )

    async def detokenize(self, request: web.Request) -> web.Response:
        tokens = (await read(request)).get("tokens")
        if not isinstance(tokens, list):
            raise answers.missing("tokens")
        return web.json_response({"prompt": " ".join(map(str, tokens))})

    async def count_tokens(self, request: web.Request) -> web.Response:
        number = answers.count(answers.prompt_of(await read(request)))
        return web.json_response(
            {"input_tokens": number, "context_management": {"original_input_tokens": number}}
        )

    async def kept(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self.responses:
            raise apis.missing_response(name)
        return web.json_response(self.responses[name])

    async def cancel(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self.responses:
            raise apis.missing_response(name)
        if self.responses[name]["status"] not in ("queued", "in_progress"):
            raise apis.synchronous()
        self.responses[name]["status"] = "cancelled"
        return web.json_response(self.responses[name])

    async def hear(self, request: web.Request) -> web.Response:
        """As many words as there are kilobytes of sound."""
        form = await request.post()
        if not isinstance(sound := form.get("file"), web.FileField):
            raise answers.missing("file")
        words = " ".join(map(answers.token, range(len(sound.file.read()) // 1000)))
        return web.json_response({"text": words, "usage": {"type": "duration", "seconds": 1}})

    async def listen(self, request: web.Request) -> web.WebSocketResponse:
        """Each message comes back as a delta; vLLM asks for session.update first."""
        if self.knobs.hang_at == "request":
            await asyncio.Event().wait()
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"type": "session.created"})
        async for message in socket:
            said = message.json()
            if said.get("type") == "end":
                break
            await socket.send_json({"type": "transcription.delta", "delta": said})
        return socket

    async def pool(self, request: web.Request) -> web.Response:
        async with self.counted(request) as (body, model, _prompt):
            return web.json_response(POOLING[request.path](body, model))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        async with self.counted(request) as (body, model, prompt):
            if self.knobs.junk and self.is_bad():
                return await self.send_junk(request)
            completion = self.completion(request, model, prompt)
            if isinstance(completion, apis.Response) and body.get("background"):
                self.responses[completion.name] = completion.queued()
                return web.json_response(completion.queued())
            completion.garbage = self.slumber.garbage
            length, finish = self.length(body, prompt)
            if body.get("stream"):
                return await self.stream(request, completion, body, length, finish)
            async for _ in self.paced(length):
                pass
            if not self.core_alive():
                raise answers.dead()
            whole = completion.whole(length, finish)
            if isinstance(completion, apis.Response):
                self.responses[completion.name] = whole
            return web.json_response(whole)

    def completion(
        self, request: web.Request, model: str, prompt: int
    ) -> Completion | apis.Message | apis.Response:
        name = request.headers.get("X-Request-Id")
        if request.path == "/v1/responses":
            return apis.Response(model, prompt)
        if request.path == "/v1/messages":
            return apis.Message(model, prompt, name)
        return Completion(model, prompt, chat=request.path == "/v1/chat/completions", request_id=name)

    @asynccontextmanager
    async def counted(self, request: web.Request) -> AsyncIterator[tuple[Json, str, int]]:
        """Body, model name and prompt tokens of a request, which counts as finished, refused or aborted."""
        counters = self.counters
        counters.received += 1
        counters.in_flight += 1
        try:
            body = await read(request)
            model, prompt = self.accept(request, body)
            if self.knobs.hang_at == "request" and self.is_bad():
                await asyncio.Event().wait()
            await self.slumber.awake.wait()
            async with self.seats:
                yield body, model, prompt
            counters.finished += 1
        except (asyncio.CancelledError, ConnectionError):
            counters.aborted += 1
            raise
        finally:
            counters.in_flight -= 1

    def accept(self, request: web.Request, body: Json) -> tuple[str, int]:
        names = self.flags.names
        text = answers.prompt_of(body)
        model = body.get("model") or names[0]
        if model not in (*names, *self.flags.adapters):
            fault = answers.unknown_model(model, names, pooling=self.flags.task != "chat")
            raise AnthropicFault(fault) if request.path == "/v1/messages" else fault
        self.counters.prompts.append(text)
        prompt = answers.count(text)
        longest = (
            max(map(answers.count, answers.listed(body["input"])), default=0) if "input" in body else prompt
        )
        if longest > self.flags.window:
            raise answers.too_long(self.flags.window, len(text))
        if not self.core_alive():
            raise answers.dead()
        self.counters.prompt_tokens += prompt
        # The first name, whichever was asked for; but an adapter's own.
        return model if model in self.flags.adapters else names[0], prompt

    def length(self, body: Json, prompt: int) -> tuple[int, str]:
        """Tokens to answer and why it ends; max_tokens beyond the window is clamped, not refused."""
        given = map(body.get, ("max_completion_tokens", "max_tokens", "max_output_tokens"))
        asked = next(filter(None, given), 16)
        room = min(asked, self.flags.window - prompt)
        if 0 < self.knobs.tokens < room:
            return self.knobs.tokens, "stop"
        return room, "length"

    async def stream(
        self,
        request: web.Request,
        completion: Completion | apis.Message | apis.Response,
        body: Json,
        length: int,
        finish: str,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await asyncio.sleep(self.knobs.reading_seconds)
        for chunk in completion.opening():
            await response.write(completion.encode(chunk))
        async for number in self.paced(length):
            await response.write(
                completion.encode(completion.next_token(finish if number + 1 == length else None))
            )
        if not self.core_alive():
            await response.write(answers.event(answers.dead().body))
        else:
            how = finish if completion.made == length else "abort"
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            for chunk in completion.closing(how, usage):
                await response.write(completion.encode(chunk))
        await response.write(completion.last)
        await response.write_eof()
        return response

    async def paced(self, length: int) -> AsyncIterator[int]:
        """The numbers of the tokens as they come, until all are made, the engine ends or its core dies."""
        for number in range(length):
            await self.misbehave(number)
            # A stopped worker answers nothing, while /health stays 200. Nothing tells when it goes on.
            while self.core_stopped():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            if self.ending.is_set() or not self.core_alive():
                return
            self.counters.generated_tokens += 1
            yield number
            rate = self.knobs.tokens_per_second
            await asyncio.sleep(1 / rate if rate else 0)

    async def misbehave(self, made: int) -> None:
        if self.knobs.die_at_token and made == self.knobs.die_at_token:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.knobs.stop_at_token and made == self.knobs.stop_at_token:
            await self.ending.wait()
        if self.knobs.oom_at_token and made == self.knobs.oom_at_token:
            startlog.fatal(startlog.OOM)
            self.kill_core()
        if self.knobs.crash_at == f"token:{made}":
            self.kill_core()

    def is_bad(self) -> bool:
        """Whether it has served as many as it is to serve first."""
        return self.counters.received > self.knobs.good_first

    async def send_junk(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        transport.write(JUNK.get(self.knobs.junk, JUNK["status"]))
        while self.knobs.junk == "endless":
            if transport.is_closing():
                raise ConnectionResetError
            if transport.get_write_buffer_size() < 1 << 20:
                transport.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await asyncio.sleep(0)
        transport.close()
        raise ConnectionResetError


async def read(request: web.Request) -> Json:
    try:
        body = json.loads(await request.read())
    except ValueError:
        raise answers.not_json() from None
    if not isinstance(body, dict):
        raise answers.not_json()
    return body


def state(pid: int) -> str:
    """The letter of /proc/PID/stat, or X."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
