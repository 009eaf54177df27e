"""The profile's fields for tools, reasoning, templates, drafts and media: what may be written, what vLLM is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.config import load, warnings
from supervisor.config.parsers import REASONING_PARSERS, TOOL_PARSERS
from supervisor.core.command import NO_HOST, argv, environment, fingerprint
from supervisor.errors import ConfigError

ROOT = Path(__file__).parent.parent
LLAMA = 'model = "llama"\nweights = "org/llama"\ngpus = [0]\n'


def written(folder: Path, text: str) -> Path:
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "profiles" / "llama_0.toml").write_text(LLAMA + text)
    (folder / "llmd.toml").write_text(
        '[server]\nlisten = ["127.0.0.1:1"]\n[engine]\ncommand = ["/bin/true"]\n'
    )
    return folder / "llmd.toml"


def words(folder: Path, text: str) -> list[str]:
    config = load(written(folder, text))
    return list(argv(config.profiles["llama_0"], config, Path("/s"), 0.9))


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_each_field_becomes_vllms_flag(tmp_path: Path) -> None:
    told = words(
        tmp_path,
        'tool_parser = "hermes"\nreasoning_parser = "qwen3"\nchat_template = "./chat.jinja"\n'
        'speculative = { method = "ngram", num_speculative_tokens = 4 }\n'
        'allowed_media_domains = ["img.example.org", "b.example.org"]\n',
    )
    assert "--enable-auto-tool-choice" in told
    assert after(told, "--tool-call-parser") == "hermes"
    assert after(told, "--reasoning-parser") == "qwen3"
    assert after(told, "--chat-template") == str(tmp_path / "profiles/chat.jinja")
    assert json.loads(after(told, "--speculative-config")) == {"method": "ngram", "num_speculative_tokens": 4}
    media = told.index("--allowed-media-domains")
    assert told[media + 1 : media + 3] == ["img.example.org", "b.example.org"]


def test_without_them_no_flag_is_passed_and_media_come_from_nowhere(tmp_path: Path) -> None:
    told = words(tmp_path, "")
    flags = ("--enable-auto-tool-choice", "--reasoning-parser", "--chat-template", "--speculative-config")
    assert not set(flags) & set(told)
    assert after(told, "--allowed-media-domains") == NO_HOST


def test_an_engine_follows_no_redirect_to_another_host(tmp_path: Path) -> None:
    config = load(written(tmp_path, ""))
    sees = environment(config.profiles["llama_0"], config, {}, directory=tmp_path, key="k", indices=(0,))
    assert sees["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_drafts_take_memory_so_what_was_measured_without_them_is_void(tmp_path: Path) -> None:
    plain = load(written(tmp_path, ""))
    drafting = load(written(tmp_path, 'speculative = { method = "ngram" }\n'))
    shapes = [fingerprint(config.profiles["llama_0"], config) for config in (plain, drafting)]
    assert len(set(shapes)) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('args = ["--tool-call-parser", "hermes"]', "write tool_parser ="),
        ('args = ["--enable-auto-tool-choice"]', "write tool_parser ="),
        ('args = ["--reasoning-parser=qwen3"]', "write reasoning_parser ="),
        ('args = ["--allowed-media-domains", "a.org"]', "write allowed_media_domains ="),
        ('args = ["--chat-template", "x"]', "write chat_template ="),
        ('args = ["--speculative-config", "{}"]', "write speculative ="),
        ('allowed_media_domains = ["https://a.org"]', "is no host name"),
        ('allowed_media_domains = ["*.a.org"]', "is no host name"),
        ("speculative = { num_speculative_tokens = 3 }", "neither method nor model"),
        ('tool_parser = ""', "empty"),
        ('tools = "keep"', "'drop', 'refuse' or 'pass'"),
        ('task = "embed"\ntool_parser = "hermes"', "a model for embed has no tool_parser"),
        ('task = "rerank"\nreasoning_parser = "qwen3"', "a model for rerank has no reasoning_parser"),
    ],
)
def test_what_cannot_be_is_told_with_its_cure(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, text + "\n"))
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ('tool_parser = "hermes"', []),
        ('tool_parser = "hermez"', ["vLLM is not known to have a tool parser hermez"]),
        ('tool_parser = "mine"\nargs = ["--tool-parser-plugin", "mine.py"]', []),
        ('reasoning_parser = "deepseek-r1"', ["vLLM is not known to have a reasoning parser deepseek-r1"]),
        ('chat_template = "/nowhere/x.jinja"', ["there is no file /nowhere/x.jinja"]),
        ('chat_template = "{{ messages }}"', []),
        (
            'tool_parser = "hermes"\nmax_model_len = 4096',
            ["the 36 tools of a chat in Open WebUI do not fit into 4096 tokens"],
        ),
        ("max_model_len = 4096", []),
        ('tool_parser = "hermes"\nmax_model_len = 8192', []),
    ],
)
def test_what_is_likely_not_meant_is_warned_of(tmp_path: Path, text: str, warned: list[str]) -> None:
    assert [problem.what for problem in warnings(load(written(tmp_path, text + "\n")))] == warned


def test_the_shipped_profiles_have_parsers_that_vllm_has() -> None:
    profiles = load(ROOT / "llmd.toml").profiles
    assert {p.tool_parser for p in profiles.values()} - {None} <= TOOL_PARSERS
    assert {p.reasoning_parser for p in profiles.values()} - {None} <= REASONING_PARSERS
    parsers = {
        p.model: p.tool_parser or p.reasoning_parser for p in profiles.values() if p.task == "generate"
    }
    assert parsers == {
        "llama": "llama3_json",
        "qwen-coder": "hermes",
        "qwen-72b": "hermes",
        "deepseek-r1": "deepseek_r1",
    }
