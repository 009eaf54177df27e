"""Verdicts, and mends that hold what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import Config, Profile, load
from supervisor.core.devices import GIB, HOST, MIB, Reading, Survey
from supervisor.planning.architecture import read_architecture
from supervisor.planning.checkpoint import Checkpoint, Tensor
from supervisor.planning.plan import NOT_HERE, Known, Outlook, Verdict, mended, outlook, plan
from tests.planning.test_footprint import BGE_M3, LLAMA_8B, QWEN_72B_AWQ, awq_tensors, llama_tensors

LLAMA = Known(Checkpoint(read_architecture(LLAMA_8B), tuple(llama_tensors())), "")
BGE = Known(Checkpoint(read_architecture(BGE_M3), lump=2_271_145_830), "")
QWEN = Known(Checkpoint(read_architecture(QWEN_72B_AWQ), tuple(awq_tensors())), "")
SHIPPED = load(Path(__file__).parents[2] / "llmd.toml")
EMPTY = Config(path=Path("llmd.toml"))


def survey(*totals: int) -> Survey:
    cards = [Reading(f"gpu:{n}", total, 0, total, 0.0, index=n) for n, total in enumerate(totals)]
    return Survey((*cards, Reading(HOST, 64 * GIB, 0, 64 * GIB, 0.0)))


def profile(**fields: object) -> Profile:
    return Profile.model_validate({"name": "a", "model": "m", "weights": "w", "gpus": (0,), **fields})


def looked(asked: Profile, known: Known = LLAMA, *totals: int) -> Outlook:
    return outlook(asked, known, EMPTY, survey(*(totals or (24 * GIB, 24 * GIB))))


def test_what_fits() -> None:
    found = looked(profile(max_model_len=32768))
    assert (found.verdict, found.reason, found.mends) == (Verdict.FITS, "", ())
    assert found.footprint is not None
    assert found.footprint.fits


def test_a_window_that_is_too_long() -> None:
    found = looked(profile(max_model_len=131072))
    assert found.verdict is Verdict.NEVER
    assert found.footprint is not None
    assert found.reason == (
        f"the KV cache has room for {found.footprint.longest} tokens of one request, max_model_len is 131072"
    )
    shorter, with_all_of_the_card = found.mends
    assert shorter == {"max_model_len": (found.footprint.longest or 0) // 1024 * 1024}
    assert with_all_of_the_card["gpu_memory_utilization"] == 0.98
    assert with_all_of_the_card["max_model_len"] > shorter["max_model_len"]


def test_a_size_that_is_too_small_for_the_window() -> None:
    """Weights 14.96 GiB, work 0.63, 1 GiB and a block for 8192 tokens: 16.59 of what CUDA sees."""
    found = looked(profile(vram=16 * GIB, max_model_len=8192, max_concurrent=6))
    shorter, larger = found.mends
    assert shorter.keys() == {"max_model_len"}
    assert larger["vram"] / GIB == pytest.approx(16.59 / 0.98, abs=0.02)


def test_no_room_at_all_wants_more_of_the_card() -> None:
    found = looked(profile(gpu_memory_utilization=0.5, max_model_len=8192))
    assert "which leaves no KV cache in 11.76 GiB" in found.reason
    assert found.mends == ({"gpu_memory_utilization": 0.71},)


def test_asking_for_more_than_the_card_may_give() -> None:
    asked = looked(profile(gpu_memory_utilization=0.999, max_model_len=8192))
    assert asked.reason == "it asks for 23.98 GiB of 24.00 GiB, of which 0.25 GiB stay free"
    assert asked.mends == ({"gpu_memory_utilization": 0.98},)
    assert looked(profile(vram=24 * GIB, max_model_len=8192)).mends == ({"vram": 24320 * MIB},)


def test_a_model_larger_than_the_card() -> None:
    small = looked(profile(max_model_len=8192), LLAMA, 12 * GIB)
    assert small.mends == ()
    assert small.reason.endswith("; over 2 such GPUs it would fit")
    assert looked(profile(max_model_len=8192), LLAMA, 2 * GIB).reason.endswith("; no setting mends that here")


def test_the_whole_card_and_a_shorter_window() -> None:
    [both] = looked(profile(vram=15 * GIB, max_model_len=131072), LLAMA, 24 * GIB).mends
    assert both.keys() == {"vram", "max_model_len"}


def test_an_encoder_in_too_little() -> None:
    found = looked(profile(task="embed", vram=GIB, args=("--enforce-eager",), max_model_len=8192), BGE)
    assert found.verdict is Verdict.NEVER
    assert [mend.keys() for mend in found.mends] == [{"vram"}]
    fitting = profile(task="embed", vram=2 * GIB, args=("--enforce-eager",), max_model_len=8192)
    assert looked(fitting, BGE).verdict is Verdict.FITS


@given(
    ask=st.one_of(
        st.builds(lambda share: {"gpu_memory_utilization": share}, st.floats(0.01, 1.0)),
        st.builds(lambda size: {"vram": size * MIB}, st.integers(1, 40 * 1024)),
    ),
    window=st.integers(1, 131072),
    total=st.integers(4 * 1024, 80 * 1024),
    cache=st.sampled_from([(), ("--kv-cache-memory-bytes", "1G"), ("--kv-cache-dtype", "fp8")]),
)
def test_every_mend_mends(ask: dict[str, object], window: int, total: int, cache: tuple[str, ...]) -> None:
    asked = profile(max_model_len=window, args=cache, **ask)
    found = looked(asked, LLAMA, total * MIB)
    for mend in found.mends:
        again = looked(mended(asked, mend), LLAMA, total * MIB)
        assert again.verdict is Verdict.FITS, (mend, again.reason)
    if found.verdict is Verdict.NEVER and not found.mends:
        best = {"vram": (total - 256) * MIB, "max_model_len": 1}
        assert looked(mended(asked, best), LLAMA, total * MIB).verdict is Verdict.NEVER


def test_a_cpu_profile_is_mended_in_host_memory() -> None:
    asked = profile(device="cpu", gpus=(), memory=8 * GIB, max_model_len=8192)
    [mend] = looked(asked).mends
    assert mend.keys() == {"memory"}
    assert looked(mended(asked, mend)).verdict is Verdict.FITS


def test_what_vllm_refuses_before_it_looks_at_memory() -> None:
    odd = looked(profile(gpus=(0, 1, 2)), LLAMA, 24 * GIB, 24 * GIB, 24 * GIB)
    assert odd.reason == "its 32 attention heads cannot be divided among 3 GPUs"
    beyond = looked(profile(max_model_len=200_000), LLAMA, 80 * GIB)
    assert beyond.reason == "max_model_len is 200000, the model was made for 131072 tokens"
    assert beyond.mends == ({"max_model_len": 131072},)


def test_a_gpu_the_host_lacks() -> None:
    assert looked(profile(gpus=(5,))).reason == "there is no GPU 5; write some of 0, 1"
    assert looked(profile(gpus=(5,))).verdict is Verdict.NEVER


def test_a_sick_card_is_no_verdict() -> None:
    sick = Survey((Reading("gpu:0", 0, 0, 0, 0.0, name="RTX", index=0, trouble="GPU is lost"),))
    found = outlook(profile(), LLAMA, EMPTY, sick)
    assert (found.verdict, found.reason) == (Verdict.UNKNOWN, "RTX: GPU is lost")


def test_a_gpu_in_the_hosts_memory_is_budgeted_there() -> None:
    unified = Reading("gpu:0", 0, 0, 0, 0.0, index=0, unified=True)
    host = Reading(HOST, 64 * GIB, 0, 64 * GIB, 0.0)
    found = outlook(
        profile(gpu_memory_utilization=0.5, max_model_len=8192), LLAMA, EMPTY, Survey((unified, host))
    )
    assert (found.verdict, list(found.needs)) == (Verdict.FITS, [HOST])


def test_without_weights_what_it_states_counts() -> None:
    found = looked(profile(vram=20 * GIB), Known())
    assert (found.verdict, found.footprint, found.reason) == (Verdict.STATED, None, NOT_HERE)
    [mend] = looked(profile(vram=24 * GIB), Known()).mends
    assert looked(mended(profile(), mend), Known()).verdict is Verdict.STATED


def test_a_model_that_is_not_understood_is_planned_as_stated() -> None:
    strange = read_architecture({**LLAMA_8B, "mamba_d_conv": 4})
    found = looked(profile(), Known(Checkpoint(strange, (Tensor("a", "BF16", (1,), 2),)), ""))
    assert (found.verdict, found.reason) == (
        Verdict.STATED,
        "what a model with mamba_d_conv keeps is not known",
    )


def test_flags_that_are_not_counted_are_named() -> None:
    assert looked(profile(args=("--enable-lora",), max_model_len=8192)).notes == (
        "--enable-lora is not counted",
    )


def test_the_shipped_profiles_on_two_cards() -> None:
    """By day one 8B model on GPU 0, one beside embeddings and reranker on GPU 1; at night the large one alone."""
    found = plan(SHIPPED, tuple(SHIPPED.profiles), {}, survey(24 * GIB, 24 * GIB))
    assert found.possible
    assert {each.verdict for each in found.outlooks} == {Verdict.STATED}
    assert found.sets["night"] == (("qwen_72b_dual",),)
    eight_b = ("deepseek_r1", "llama", "qwen_coder")
    expected = {
        frozenset({f"{first}_0", f"{second}_1", "bge_m3_1", "bge_reranker_1"})
        for first in eight_b
        for second in eight_b
    }
    assert len(found.sets["day"]) == 9
    assert set(map(frozenset, found.sets["day"])) == expected


@pytest.mark.parametrize(
    ("name", "known", "tokens"),
    [
        ("llama_0", LLAMA, 45_000),
        ("llama_1", LLAMA, 18_000),
        ("qwen_72b_dual", QWEN, 23_000),
        ("bge_m3_1", BGE, None),
        ("bge_reranker_1", BGE, None),
    ],
)
def test_the_shipped_profiles_hold_what_their_comments_say(
    name: str, known: Known, tokens: int | None
) -> None:
    """The comments reckon with more working memory than the estimate: they promise less, not more."""
    found = outlook(SHIPPED.profiles[name], known, SHIPPED, survey(24 * GIB, 24 * GIB))
    assert found.verdict is Verdict.FITS
    assert found.footprint is not None
    counted = found.footprint.tokens
    assert counted == tokens or (
        counted is not None and tokens is not None and tokens <= counted < 1.5 * tokens
    )


def test_one_card_less_is_told() -> None:
    found = plan(SHIPPED, tuple(SHIPPED.profiles), {}, survey(24 * GIB))
    assert not found.possible
    misfits = {each.profile.name for each in found.outlooks if each.verdict is Verdict.NEVER}
    assert misfits == {name for name in SHIPPED.profiles if name.endswith(("_1", "_dual"))}
    assert found.sets["night"] == ()


def test_some_profiles_of_some_modes() -> None:
    found = plan(SHIPPED, ("llama_0", "llama_1"), {}, survey(24 * GIB, 24 * GIB))
    assert found.sets == {"day": (("llama_0", "llama_1"),)}
