"""What is allowed but likely not meant, as far as this host tells: told at start and by `llmd check`."""

from __future__ import annotations

import difflib
import grp
import ipaddress
import os
import shutil
from collections.abc import Collection, Iterator, Mapping

from supervisor.config.checks import Finding
from supervisor.config.lines import locate
from supervisor.config.models import Config, Profile, option
from supervisor.config.parsers import REASONING_PARSERS, TOOL_PARSERS
from supervisor.config.secrets import find, peer_key
from supervisor.errors import Problem

CHAT_WITH_TOOLS = 7500
"""Tokens. A browser chat of Open WebUI brings 36 tools, 25 KB of JSON, which is some 6,400; the rest is to talk."""


def warnings(config: Config, environ: Mapping[str, str] = os.environ) -> list[Problem]:
    """Reads key files, groups and the search path, so not for the event loop."""
    whole = (
        *_keys(config, environ),
        *_peers(config, environ),
        *_exposure(config),
        *_group(config),
        *_commands(config, environ),
    )
    found = [Problem(config.path, what, instead, key) for key, what, instead in whole]
    if not config.profiles:
        found.append(Problem(config.server.profiles, "holds no profile", "write one, such as llama_0.toml"))
    for name, profile in config.profiles.items():
        found += [Problem(config.files[name], what, instead, key) for key, what, instead in _tools(profile)]
        # Path.is_dir raises where os.path's does not: on a name too long, or a folder it may not enter.
        if profile.weights.startswith("/") and not os.path.isdir(profile.weights):  # noqa: PTH112
            what = f"there is no directory {profile.weights}"
            found.append(Problem(config.files[name], what, "write where the weights are", ("weights",)))
    return locate(found)


def _keys(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    sources: dict[str, str] = {}
    for source, key in config.keys.items():
        found = find(key, environ)
        if found.trouble and found.digest is None:
            yield (
                ("keys", source),
                f"{source} cannot get in: {found.trouble}",
                "set the key, then start llmd again",
            )
        elif found.trouble:
            yield ("keys", source), found.trouble, f"run chmod 600 {key.file}"
        if found.digest is None:
            continue
        first = sources.setdefault(found.digest, source)
        if first != source:
            what = f"{source} has the key of {first}, so its requests count as {first}'s"
            yield ("keys", source), what, "give each a key of its own"


def _peers(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    for name, peer in config.peers.items():
        secret, trouble = peer_key(peer, environ)
        if trouble:
            yield ("peers", name), f"the key for peer {name}: {trouble}", "set it, and keep it from others"
        host = peer.url.partition("://")[2].partition("/")[0].rpartition(":")[0].strip("[]")
        if secret and peer.url.startswith("http://") and not _loopback(host):
            what = f"the key for peer {name} goes over the network in clear"
            yield ("peers", name, "url"), what, "write https://, unless the network between is private"


def _exposure(config: Config) -> Iterator[Finding]:
    for position, address in enumerate(config.server.listen):
        host = address.rpartition(":")[0].strip("[]")
        if not config.keys and not _loopback(host):
            what = f"{address} is open to everyone who can reach it, without a key"
            yield ("server", "listen", position), what, 'write [keys.NAME] with env = "..."'


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _group(config: Config) -> Iterator[Finding]:
    group = config.server.admin_group
    if group is None:
        return
    try:
        grp.getgrnam(group)
    except KeyError:
        yield ("server", "admin_group"), f"this host has no group {group}", f"run groupadd --system {group}"


def _tools(profile: Profile) -> Iterator[Finding]:
    """Parsers that vLLM may not have, a template that is not there, a context that tools alone would fill."""
    for kind, known in (("tool", TOOL_PARSERS), ("reasoning", REASONING_PARSERS)):
        named = getattr(profile, f"{kind}_parser")
        plugged = option(profile.args, f"--{kind}-parser-plugin") is not None
        if named is not None and named not in known and not plugged:
            yield (
                (f"{kind}_parser",),
                f"vLLM is not known to have a {kind} parser {named}",
                _nearest(named, known),
            )
    template = profile.chat_template
    if template and template.startswith("/") and not os.path.isfile(template):  # noqa: PTH113
        yield ("chat_template",), f"there is no file {template}", "write where the template is"
    window = profile.max_model_len
    if profile.tool_parser and window is not None and window < CHAT_WITH_TOOLS:
        what = f"the 36 tools of a chat in Open WebUI do not fit into {window} tokens"
        yield ("max_model_len",), what, f"write {CHAT_WITH_TOOLS} or more, or leave tool_parser out"


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"write {close[0]}, or see that your vLLM has it" if close else "see that your vLLM has it"


def _commands(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    program = config.engine.command[0]
    used = not config.profiles or any(profile.command is None for profile in config.profiles.values())
    if used and shutil.which(program, path=config.engine.env.get("PATH", environ.get("PATH"))) is None:
        what = f"there is no program {program}"
        yield ("engine", "command"), what, 'write its full path, such as ["/opt/vllm/bin/vllm", "serve"]'
