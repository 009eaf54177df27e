"""The routers under test: how each is started in front of one engine, and how it is known to serve.

Each reaches its engine by the fastest way it knows: nginx and llmd over a Unix socket, the others over TCP.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil

ENGINE_CPU, ROUTER_CPU = "0", "1"
KEY = "sk-bench"
SETTLED = 2.0
"""Seconds that a router has for what it still does once it serves."""

Serving = AbstractContextManager[tuple[int, psutil.Process]]
Router = Callable[[Path], Serving]
"""Serves on a port as long as it is open; the path is the engine's program."""

NGINX = """{user} daemon off; worker_processes 1; pid nginx.pid; error_log nginx.err error;
events {{ worker_connections 8192; }}
http {{ access_log off; client_max_body_size 0; client_body_buffer_size 4m; keepalive_requests 100000000;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  map $http_authorization $ok {{ default 0; "Bearer sk-bench" 1; }}
  upstream engine {{ server unix:{socket}; keepalive 1024; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; if ($ok = 0) {{ return 401; }}
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; }} }} }}
"""

LLMD = """[server]
listen = ["127.0.0.1:{port}"]
admin_socket = "{home}/admin"
state_dir = "{home}/state"
[engine]
command = ["taskset", "-c", "{cpu}", "{engine}", "serve"]
health_interval = "60s"
[memory]
host_floor = "64 MiB"
[keys.bench]
env = "BENCH_KEY"
"""

PROFILE = """model = "m"
weights = "m"
device = "cpu"
memory = "32 MiB"
max_model_len = 8388608
max_concurrent = 1024
max_queue = 1024
"""

LITELLM = """model_list:
  - model_name: m
    litellm_params: {{model: hosted_vllm/m, api_base: "http://127.0.0.1:{engine}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{request_timeout: 600}}
"""


def nginx(program: str) -> Router:
    """Passes bytes on, and does nothing else but look at the key."""

    @contextmanager
    def open_it(engine: Path) -> Iterator[tuple[int, psutil.Process]]:
        with _folder(engine) as folder:
            port, sock = free_port(), f"{folder}/e"
            user = "" if os.getuid() else "user root;"  # else its worker may not open the socket
            Path(folder, "nginx.conf").write_text(NGINX.format(socket=sock, port=port, user=user))
            words = [program, "-p", folder, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/nginx.err"]
            with running(_engine(engine, "--uds", sock)), serving(words, port) as process:
                yield port, process

    return open_it


def llmd(command: list[str]) -> Router:
    """With all that it does for people: keys, leases, accounting, metrics, log lines."""

    @contextmanager
    def open_it(engine: Path) -> Iterator[tuple[int, psutil.Process]]:
        with _folder(engine) as folder:
            port, path = free_port(), Path(folder, "llmd.toml")
            Path(folder, "profiles").mkdir()
            Path(folder, "profiles", "m_0.toml").write_text(PROFILE)
            path.write_text(LLMD.format(port=port, home=folder, cpu=ENGINE_CPU, engine=engine))
            with serving([*command, "--config", str(path), "serve"], port) as process:
                yield port, process

    return open_it


def vllm_router(program: str) -> Router:
    """As it comes, but silent, and by the policy that costs it least. It looks at no keys."""

    @contextmanager
    def open_it(engine: Path) -> Iterator[tuple[int, psutil.Process]]:
        port, back = free_port(), free_port()
        urls = ["--worker-urls", f"http://127.0.0.1:{back}", "--policy", "round_robin"]
        words = [program, "--port", str(port), "--prometheus-port", str(free_port()), "--log-level", "error"]
        with running(_engine(engine, "--port", str(back))), serving([*words, *urls], port) as process:
            yield port, process

    return open_it


def litellm(program: str) -> Router:
    """Its proxy with one key and no database."""
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it asks the network for prices

    @contextmanager
    def open_it(engine: Path) -> Iterator[tuple[int, psutil.Process]]:
        with _folder(engine) as folder:
            port, back, path = free_port(), free_port(), Path(folder, "litellm.yaml")
            path.write_text(LITELLM.format(engine=back, key=KEY))
            words = [program, "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
            with running(_engine(engine, "--port", str(back))), serving(words, port, local) as process:
                yield port, process

    return open_it


def _engine(program: Path, *where: str) -> list[str]:
    return ["taskset", "-c", ENGINE_CPU, str(program), "serve", "m", *where]


def _folder(engine: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=engine.parent)


@contextmanager
def running(words: list[str], more: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"BENCH_KEY": KEY} | dict(more or {}),
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def serving(words: list[str], port: int, more: Mapping[str, str] | None = None) -> Iterator[psutil.Process]:
    """A router on its CPU, once it answers."""
    with running(["taskset", "-c", ROUTER_CPU, *words], more) as process:
        deadline = time.monotonic() + 120
        while not answers(port):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"{shlex.join(words)} does not serve")
            time.sleep(0.2)
        time.sleep(SETTLED)
        yield psutil.Process(process.pid)


def answers(port: int) -> bool:
    body = b'{"model":"m","messages":[{"role":"user","content":"Hello"}]}'
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
