"""The configuration: what is accepted, and that every mistake is told with its line and its cure."""

from __future__ import annotations

import contextlib
import datetime
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import Config, Profile, load, locate, warnings
from supervisor.config.lines import key_lines
from supervisor.config.models import option
from supervisor.config.quantities import as_duration, as_size, duration, duration_or_never, size
from supervisor.errors import ConfigError, Problem

ROOT = Path(__file__).parent.parent
LLAMA = 'model = "llama"\nweights = "meta-llama/Llama-3.1-8B-Instruct"\ngpus = [0]\n'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes llmd.toml and its profiles, in a state directory short enough for sockets."""

    def files(main: str = "", **profiles: str) -> Path:
        folder = tmp_path / "profiles"
        folder.mkdir(exist_ok=True)
        for name, text in profiles.items():
            (folder / f"{name}.toml").write_text(text)
        (tmp_path / "llmd.toml").write_text(main)
        return tmp_path / "llmd.toml"

    return files


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    folder = f"{path.parent}/"
    return [str(problem).replace(folder, "") for problem in caught.value.problems]


def test_the_configuration_in_the_repository_is_right() -> None:
    config = load(ROOT / "llmd.toml")
    assert list(config.profiles) == [
        "bge_m3_1",
        "bge_reranker_1",
        "deepseek_r1_0",
        "deepseek_r1_1",
        "llama_0",
        "llama_1",
        "qwen_72b_dual",
        "qwen_coder_0",
        "qwen_coder_1",
    ]
    assert config.profiles_in("night") == {"qwen_72b_dual"}
    assert config.profiles_in("day") == set(config.profiles) - {"qwen_72b_dual"}
    assert config.modes["day"].start == datetime.time(6)
    assert config.profiles["qwen_72b_dual"].tensor_parallel == 2


def uncommented() -> str:
    """The shipped file with its commented-out keys in force."""
    return re.sub(r"^# (?=\w+ = |\[)", "", (ROOT / "llmd.toml").read_text(), flags=re.MULTILINE)


def test_what_is_commented_out_is_the_default(write: Write) -> None:
    shipped = load(ROOT / "llmd.toml")
    whole = load(write(uncommented(), **{p.stem: p.read_text() for p in ROOT.glob("profiles/*.toml")}))
    assert uncommented().count("\n# ") < 12
    assert whole.memory == shipped.memory
    assert whole.restarts == shipped.restarts
    folder = shipped.server.profiles
    assert whole.server.model_copy(update={"admin_group": None, "profiles": folder}) == shipped.server
    assert whole.engine.model_copy(update={"env": {}}) == shipped.engine
    assert whole.modes["night"].timezone == "Europe/Berlin"


def test_the_seed_contexts_and_limits() -> None:
    profiles = load(ROOT / "llmd.toml").profiles
    contexts = {
        name: profile.max_model_len for name, profile in profiles.items() if profile.task == "generate"
    }
    assert contexts == {
        "deepseek_r1_0": 24576,
        "deepseek_r1_1": 8192,
        "llama_0": 32768,
        "llama_1": 8192,
        "qwen_72b_dual": 16384,
        "qwen_coder_0": 16384,
        "qwen_coder_1": 8192,
    }
    limits = {name: profiles[name].max_concurrent for name in ("llama_0", "llama_1", "qwen_72b_dual")}
    assert limits == {"llama_0": 3, "llama_1": 6, "qwen_72b_dual": 2}


def test_an_empty_file_is_all_defaults(write: Write) -> None:
    config = load(write(llama_0=LLAMA))
    assert config.server.listen == ("127.0.0.1:8000",)
    assert config.server.state_dir == Path("/var/lib/llmd")
    assert config.engine.command == ("vllm", "serve")
    assert config.profiles["llama_0"].idle_ttl == 1800
    assert config.files["llama_0"].name == "llama_0.toml"


def test_paths_are_relative_to_the_file(write: Write) -> None:
    path = write('[server]\nadmin_socket = "a.sock"\n[keys.webui]\nfile = "key"\n', llama_0=LLAMA)
    config = load(path)
    assert config.server.admin_socket == path.parent / "a.sock"
    assert config.server.profiles == path.parent / "profiles"
    assert config.keys["webui"].file == path.parent / "key"


def test_weights_beside_the_profile_become_absolute(write: Write) -> None:
    path = write(tiny='model = "t"\nweights = "../models/tiny"\ndevice = "cpu"\nmemory = "1 GiB"\n')
    assert load(path).profiles["tiny"].weights == str(path.parent / "models/tiny")


def test_a_loaded_configuration_is_frozen(write: Write) -> None:
    config = load(write(llama_0=LLAMA))
    with pytest.raises(ValueError, match="frozen"):
        config.server.drain = 1.0  # type: ignore[misc]
    assert config == load(config.path)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("30m", 1800), ("1h30m", 5400), ("45s", 45), ("250ms", 0.25), ("1h 5m", 3900), (90, 90)],
)
def test_durations(written: object, seconds: float) -> None:
    assert duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "30", "m", "-1s", "1 fortnight", True, -1, float("nan"), float("inf"), []]
)
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration(written)


@pytest.mark.parametrize("written", ["off", 0, "0s", None])
def test_never(written: object) -> None:
    assert duration_or_never(written) is None


@pytest.mark.parametrize(
    ("written", "count"),
    [("21 GiB", 21 << 30), ("512MiB", 512 << 20), ("24 GB", 24 * 10**9), ("1.5 gib", 3 << 29), (7, 7)],
)
def test_sizes(written: object, count: int) -> None:
    assert size(written) == count


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (0.5, "0.5s"), (45, "45s"), (290, "4m50s"), (5400, "1h30m"), (7 * 86400, "7d")],
)
def test_durations_are_told_as_people_write_them(seconds: float, words: str) -> None:
    assert as_duration(seconds) == words
    assert duration(words) == seconds


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1000, "1000 B"),
        (192 << 20, "192 MiB"),
        (1 << 30, "1 GiB"),
        (37 << 29, "18.5 GiB"),
        (24 * 10**9, "24 GB"),
        ((1 << 30) + 1, "1073741825 B"),
    ],
)
def test_sizes_are_told_as_people_write_them(count: int, words: str) -> None:
    assert as_size(count) == words
    assert size(words) == count


@pytest.mark.parametrize("written", ["", "21", "GiB", "21 G", "-1 GiB", True, -1, 1.5])
def test_what_is_no_size(written: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        size(written)


def test_lines_of_keys() -> None:
    text = 'a = 1\n\n# said\nb = [\n  1,\n  2,\n]\n[t]\nc = """\nx\n"""\nd = { e = 1 }\n[[list]]\nf = 1\n[[list]]\nf = 2\n'
    assert key_lines(text) == {
        (): 1,
        ("a",): 1,
        ("b",): 4,
        ("b", 0): 4,
        ("b", 1): 4,
        ("t",): 8,
        ("t", "c"): 9,
        ("t", "d"): 12,
        ("t", "d", "e"): 12,
        ("list",): 13,
        ("list", 0): 13,
        ("list", 0, "f"): 14,
        ("list", 1): 15,
        ("list", 1, "f"): 16,
    }


def test_lines_before_a_mistake_are_still_known() -> None:
    assert key_lines("a = 1\nb = \nc = 3\n") == {(): 1, ("a",): 1}


def test_a_key_that_is_not_written_is_placed_at_its_table(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("a = 1\n[t]\nb = 1\n")
    [found] = locate([Problem(file, "c is missing", "write c", ("t", "c"))])
    assert str(found) == f"{file}:2: c is missing; write c"


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        ("[server]\nlistne = []\n", "llmd.toml:2: unknown key server.listne; write listen"),
        ("[sever]\n", "llmd.toml:1: unknown key sever; write server"),
        (
            "[keys.n8n]\nenv = 'K'\nprio = 'batch'\n",
            "llmd.toml:3: unknown key keys.n8n.prio; write priority",
        ),
        ("\n[server\n", "llmd.toml:2: this is not TOML: "),
        ("[server]\na = '''\n", "llmd.toml:2: this is not TOML: "),
        ("[server]\ndrain = 1\ndrain = 2\n", "llmd.toml:3: this is not TOML: Cannot overwrite a value; "),
        (
            "[server]\nmax_wait = 'soon'\n",
            "llmd.toml:2: server.max_wait: 'soon' is not a duration; write \"30m\"",
        ),
        ("[memory]\nmargin = '1 G'\n", "llmd.toml:2: memory.margin: '1 G' is not a size; write \"21 GiB\""),
        ("[server]\nlisten = [\n 'x',\n]\n", "llmd.toml:2: server.listen.0: 'x' is no address; write \"127."),
        ("[server]\nlisten = ':8000'\n", "llmd.toml:2: server.listen cannot be ':8000'; write a list"),
        ("[server]\nlisten = []\n", "llmd.toml:2: server.listen cannot be []; write at least 1"),
        ("[server]\nlisten = ['a:99999']\n", "llmd.toml:2: server.listen.0: 'a:99999' is no address; "),
        ("[server]\nstate_dir = 1\n", "llmd.toml:2: server.state_dir cannot be 1; write a path in quotes"),
        ("server = 1\n", "llmd.toml:1: server cannot be 1; write a table, [server]"),
        (
            "[engine]\nenv = { A = 1 }\n",
            "llmd.toml:2: engine.env.A is of the wrong kind; write a text in quotes",
        ),
        (
            "[engine]\nenv = { 'A=B' = '' }\n",
            "llmd.toml:2: engine.env.A=B.[key]: 'A=B' is no name of a variable; ",
        ),
        ("[engine]\ncommand = ['a\\u0000']\n".replace("'", '"'), "llmd.toml:2: engine.command.0: a NUL "),
        (
            "[keys]\nn8n = 'hunter2'\n",
            "llmd.toml:2: keys.n8n is of the wrong kind; write a table, [keys.n8n]",
        ),
        (
            "[restarts]\ngive_up_after = 0\n",
            "llmd.toml:2: restarts.give_up_after cannot be 0; write 1 or more",
        ),
        ("[restarts]\njitter = nan\n", "llmd.toml:2: restarts.jitter cannot be nan; "),
        (
            "[keys.a]\nenv = 'A'\nfile = 'b'\n",
            "llmd.toml:1: keys.a: a key is found in one place, not in env and file; write one of",
        ),
        ("[keys.a]\nhash = 'hunter2'\n", 'llmd.toml:2: keys.a.hash: this is no key hash; write "sha256:"'),
        ("[keys.a]\nenv = 'K'\n[keys.b]\nenv = 'K'\n", "llmd.toml:3: a and b share one key; write a key"),
        ("[modes.day]\n", "llmd.toml:1: modes.day.start is missing; write start = ..."),
        (
            "[modes.day]\nstart = '6'\n",
            "llmd.toml:2: modes.day.start: '6' is not a time of day; write \"HH:MM\"",
        ),
        (
            "[modes.day]\nstart = '06:00'\ntimezone = 'Europe/Berln'\n",
            "llmd.toml:3: modes.day.timezone: this host knows no time zone 'Europe/Berln'; write an IANA name",
        ),
        (
            "[modes.a]\nstart = '06:00'\n[modes.b]\nstart = '06:00'\n",
            "llmd.toml:4: a and b start at one time; write two different times",
        ),
        (
            "[modes.night]\nstart = '02:00'\nprofiles = ['qwen']\n",
            "llmd.toml:3: mode night names the profile qwen, which does not exist; write one of llama_0",
        ),
        (
            "[routing]\nprefer = { webui = ['gpu:0'] }\n",
            "llmd.toml:2: routing.prefer names webui, which has no key; write one of default",
        ),
        (
            "[routing.prefer]\ndefault = [\n'gpu:0',\n'gpu:7']\n",
            'llmd.toml:2: no profile is at gpu:7; write one of llama_0, "gpu:N" or "cpu"',
        ),
        ("[routing.prefer]\ndefault = ['cpu']\n", "llmd.toml:2: no profile is at cpu; "),
        ("[server]\nprofiles = 'nowhere'\n", "llmd.toml:2: "),
    ],
)
def test_what_is_wrong_in_the_main_file(write: Write, main: str, expected: str) -> None:
    [found] = problems(write(main, llama_0=LLAMA))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("ttl = 1\n" + LLAMA, ":1: unknown key ttl; remove it, or write one of model, weights, "),
        (LLAMA + "idle_tll = 1\n", ":4: unknown key idle_tll; write idle_ttl"),
        (LLAMA + "name = 'x'\n", ":4: unknown key name; "),
        ("weights = 'x'\ngpus = [0]\n", ":1: model is missing; write model = ..."),
        (LLAMA + "max_concurrent = '3'\n", ":4: max_concurrent cannot be '3'; write a whole number"),
        (LLAMA + "max_concurrent = true\n", ":4: max_concurrent cannot be True; write a whole number"),
        (
            LLAMA + "gpu_memory_utilization = 92\n",
            ":4: gpu_memory_utilization cannot be 92; write 1.0 or less",
        ),
        (
            LLAMA + "task = 'chat'\n",
            ":4: task cannot be 'chat'; write 'generate', 'embed', 'rerank', 'classify', 'pool' or 'transcribe'",
        ),
        (LLAMA.replace("[0]", "[-1]"), ":3: gpus.0: -1 names no GPU; write an index such as 0"),
        (LLAMA.replace("[0]", "[0, 0]"), ":3: GPU 0 is named twice; write each GPU once"),
        (LLAMA.replace("gpus = [0]", ""), ":1: a profile for GPUs says which; write gpus = [0]"),
        (LLAMA.replace("llama", "a b", 1), ":1: model: 'a b' is no model name; "),
        (LLAMA + "device = 'cpu'\nmemory = 1\n", ":3: a profile for the CPU has no GPUs; "),
        (LLAMA + "memory = '1 GiB'\n", ":4: memory is for the CPU; write vram = "),
        (
            LLAMA.replace("gpus = [0]", "device = 'cpu'") + "memory = 1\nsleep = true\n",
            ":5: vLLM cannot sleep on the CPU; leave sleep out",
        ),
        (
            LLAMA + "sleep_after = '5m'\n",
            ":4: an engine that may not sleep has no sleep_after; write sleep = true",
        ),
        (
            LLAMA + "sleep = true\nsleep_after = '1h'\n",
            ":5: it would sleep after 3600 s without a request, and is stopped after 1800 s (idle_ttl); "
            "write less than 1800 s, or a longer idle_ttl",
        ),
        (LLAMA + "sleep = true\nidle_ttl = '5m'\nsleep_after = '5m'\n", ":6: it would sleep after 300 s "),
        (
            LLAMA + "args = ['--enable-sleep-mode']\n",
            ":4: --enable-sleep-mode is llmd's to pass; write sleep = true in the profile",
        ),
        (
            LLAMA + "args = ['--max-num-seqs=8']\n",
            ":4: --max-num-seqs is llmd's to pass; write max_concurrent",
        ),
        (LLAMA + "vram = '0 GiB'\n", ":4: vram is nothing; "),
        (
            LLAMA + "vram = '9 GiB'\ngpu_memory_utilization = 0.5\n",
            ":4: vram and gpu_memory_utilization say the same thing; write one of them",
        ),
        ("model = 'a'\nweights = 'b'\ndevice = 'cpu'\n", ":1: a profile for the CPU says what it may take"),
        (
            "model = 'a'\nweights = 'b'\ndevice = 'cpu'\nmemory = 1\nvram = 1\n",
            ":5: vram is for GPUs; write memory = ",
        ),
        (LLAMA + "args = ['--port', '1']\n", ":4: --port is llmd's to pass; leave it out"),
        (
            LLAMA + "args = ['--max_model_len=8']\n",
            ":4: --max-model-len is llmd's to pass; write max_model_len",
        ),
        (LLAMA + "args = ['-tp', '2']\n", ":4: --tensor-parallel-size is llmd's to pass; leave it out"),
        (LLAMA + "args = ['-pp', '2']\n", ":4: 1 GPUs cannot be divided into 2 pipeline stages; "),
        (
            LLAMA + "args = ['--enable-lora']\n",
            ":4: --enable-lora is llmd's to pass; write lora = { NAME = ... } in the profile",
        ),
        (
            LLAMA + "lora = { llama = 'x' }\n",
            ":4: the adapter llama has the name of a model or a profile; write a name that only this adapter has",
        ),
        (LLAMA + "lora = { a = 'x' }\n", ":4: the adapter a has the name of a model or a profile; "),
        (LLAMA + "lora = { 'a b' = 'x' }\n", ":4: lora.a b.[key]: 'a b' is no model name; "),
        (LLAMA + "lora = { french = '' }\n", ":4: lora.french cannot be ''; "),
        (LLAMA + "batch_inputs = 0\n", ":4: batch_inputs cannot be 0; write 1 or more"),
    ],
)
def test_what_is_wrong_in_a_profile(write: Write, profile: str, expected: str) -> None:
    [found] = problems(write(a=profile))
    assert found.startswith(f"profiles/a.toml{expected}")


def test_an_adapter_is_of_one_model(write: Write) -> None:
    french = "lora = { french = './french' }\n"
    config = load(write(a=LLAMA + french, b=LLAMA.replace("[0]", "[1]") + french))
    assert {
        path.rpartition("/profiles/")[2] for p in config.profiles.values() for path in p.lora.values()
    } == {"french"}
    [found] = problems(write(a=LLAMA + french, b=LLAMA.replace("llama", "qwen", 1) + french))
    assert found.startswith(
        "profiles/b.toml:4: french is an adapter of llama in a, of qwen here; write another"
    )


def test_every_mistake_is_told_at_once(write: Write) -> None:
    found = problems(write("[server]\nlistne = 1\ndrain = 'x'\n", a="model = 1\n", b="gpus = [\n"))
    assert [text.split(": ")[0] for text in found] == [
        "llmd.toml:2",
        "llmd.toml:3",
        "profiles/a.toml:1",
        "profiles/a.toml:1",
        "profiles/b.toml:1",
    ]


def test_a_broken_profile_raises_no_second_complaint(write: Write) -> None:
    main = "[modes.night]\nstart = '02:00'\nprofiles = ['a']\n[routing.prefer]\ndefault = ['gpu:0', 'a']\n"
    assert len(problems(write(main, a="gpus = \n"))) == 1


def test_a_model_named_as_another_profile(write: Write) -> None:
    [found] = problems(write(llama=LLAMA.replace('"llama"', '"other"'), llama_0=LLAMA))
    assert found.startswith("profiles/llama_0.toml:1: the model llama has the name of another profile; ")


def test_a_model_may_have_the_name_of_its_own_profile(write: Write) -> None:
    assert list(load(write(llama=LLAMA)).profiles) == ["llama"]


def test_one_model_has_one_task(write: Write) -> None:
    [found] = problems(write(llama_0=LLAMA, llama_1=LLAMA + "task = 'embed'\n"))
    assert found.startswith("profiles/llama_1.toml:4: llama is for generate in llama_0, for embed here; ")


def test_a_profile_needs_a_plain_name(write: Write) -> None:
    [found] = problems(write(**{"Llama 0": LLAMA}))
    assert "name the file with a-z" in found


@pytest.mark.parametrize(("length", "fits"), [(49, True), (50, False)])
def test_state_directory_and_the_length_of_sockets(write: Write, length: int, fits: bool) -> None:
    path = write(f"[server]\nstate_dir = '/{'s' * (length - 1)}'\n", llama_0=LLAMA)
    if fits:
        assert len(str(load(path).server.state_dir)) == length
    else:
        [found] = problems(path)
        assert "is 1 too long; write a shorter path" in found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems(tmp_path / "no.toml") == [
        "no.toml: cannot be read: No such file or directory; write the file, or name another one"
    ]
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff'\n")
    assert problems(tmp_path / "bytes.toml") == ["bytes.toml: is not UTF-8 text; write it in UTF-8"]


def test_other_files_beside_the_profiles_are_left_alone(write: Write) -> None:
    path = write(llama_0=LLAMA, **{".#llama_0": "locked"})
    (path.parent / "profiles" / "llama_0.toml~").write_text("old")
    assert list(load(path).profiles) == ["llama_0"]


@pytest.mark.parametrize(
    "text",
    [
        f"a = {'[' * 5000}",
        f"[restarts]\ngive_up_after = {'9' * 5000}",
        f"[server]\ndrain = {'9' * 400}",
        f"[server]\nmax_body = '{'9' * 400} GiB'",
        f"[server]\nprofiles = '{'p' * 5000}'",
        '[server]\nprofiles = "a\\u0000b"',
        '[server]\nstate_dir = "a\\u0000b"',
        '[modes.a]\nstart = 25:00:00',
        '[modes.a]\nstart = "06:00"\ntimezone = "../../etc/passwd"',
        '[modes.a]\nstart = "06:00"\ntimezone = "Europe"',
    ],
)  # fmt: skip
def test_whatever_is_written_ends_as_a_problem_with_its_line(write: Write, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(text, llama_0=LLAMA))
    assert all(problem.line for problem in caught.value.problems)


@given(st.data())
def test_a_mangled_file_ends_as_a_problem_or_is_right(data: st.DataObject) -> None:
    """The file that is shipped, with a stretch of it replaced."""
    text = uncommented()
    begin = data.draw(st.integers(0, len(text)))
    mangled = text[:begin] + data.draw(st.text(max_size=5)) + text[begin + data.draw(st.integers(0, 20)) :]
    with tempfile.TemporaryDirectory(prefix="llmd-") as folder:
        path = Path(folder) / "llmd.toml"
        path.write_text(mangled, encoding="utf-8", newline="")
        (path.parent / "profiles").symlink_to(ROOT / "profiles")
        with contextlib.suppress(ConfigError):
            assert load(path).path == path


def test_options_of_vllm() -> None:
    args = ("--enforce-eager", "--max_num_seqs=4", "-tp", "2", "--last")
    assert option(args, "--max-num-seqs") == "4"
    assert option(args, "--tensor-parallel-size", "-tp") == "2"
    assert option(args, "--last") == ""
    assert option(args, "--port") is None


def test_pipeline_stages_divide_the_gpus() -> None:
    profile = Profile(name="a", model="a", weights="w", gpus=(0, 1, 2, 3), args=("-pp", "2"))
    assert (profile.tensor_parallel, profile.pipeline_parallel) == (2, 2)
    assert Profile(name="a", model="a", weights="w", device="cpu").tensor_parallel == 1


def told(config: Config, **environ: str) -> list[str]:
    return [problem.what for problem in warnings(config, environ)]


def test_warnings_of_keys(write: Write, tmp_path: Path) -> None:
    (tmp_path / "open").write_text("secret\n")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "empty").write_text("\n")
    main = '[engine]\ncommand = ["/bin/true"]\n[keys.a]\nenv = "A"\n[keys.b]\nenv = "B"\n'
    main += '[keys.c]\nfile = "open"\n[keys.d]\nfile = "gone"\n[keys.e]\nfile = "empty"\n'
    config = load(write(main, llama_0=LLAMA))
    assert told(config, A="secret") == [
        "b cannot get in: B is not set in the environment",
        f"{tmp_path}/open is open to every user of this host",
        "c has the key of a, so its requests count as a's",
        f"d cannot get in: {tmp_path}/gone cannot be read: No such file or directory",
        f"e cannot get in: {tmp_path}/empty is empty",
    ]
    assert [problem.line for problem in warnings(config, {"A": "secret"})] == [5, 7, 7, 9, 11]


def test_warnings_of_an_open_door(write: Write) -> None:
    main = '[engine]\ncommand = ["/bin/true"]\n[server]\nlisten = ["127.0.0.1:1", "[::1]:1", "localhost:1", {}]\n'
    open_door = load(write(main.replace("{}", '"0.0.0.0:1", "tailscale:1"'), llama_0=LLAMA))
    assert told(open_door) == [
        "0.0.0.0:1 is open to everyone who can reach it, without a key",
        "tailscale:1 is open to everyone who can reach it, without a key",
    ]
    with_key = load(write(main.replace("{}", '"0.0.0.0:1"') + '[keys.a]\nenv = "A"\n'))
    assert told(with_key, A="secret") == []


def test_warnings_of_what_this_host_lacks(write: Write) -> None:
    main = '[server]\nadmin_group = "no-such-group"\n[engine]\ncommand = ["no-such-program"]\n'
    config = load(write(main, llama_0=LLAMA.replace("meta-llama", "/nowhere")))
    assert told(config, PATH="/bin") == [
        "this host has no group no-such-group",
        "there is no program no-such-program",
        "there is no directory /nowhere/Llama-3.1-8B-Instruct",
    ]


def test_warning_of_no_profiles(write: Write) -> None:
    assert told(load(write('[engine]\ncommand = ["/bin/true"]\n'))) == ["holds no profile"]
