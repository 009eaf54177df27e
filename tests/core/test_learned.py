"""Figures that are learned: means, maxima, tokens from letters, and what is worth keeping or warning of."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from supervisor.core.devices import GIB, MIB
from supervisor.core.learned import Learned, Tokens, drift, notable

KNOWN = Learned("0.32.0", start=40.0, weights=8 * GIB, peak={"GPU-0": 20 * GIB})


def test_seconds_are_moving_means_and_sizes_maxima():
    known = Learned().started(60).started(40).woke(1, 2).woke(2, 30).woke(1, 4)
    assert (known.start, known.wake, known.reload) == (50, 3, 30)
    known = known.grew({"GPU-0": 5, "GPU-1": 7}).grew({"GPU-0": 9}).slept({"GPU-0": 4}).slept({"GPU-0": 2})
    assert (known.peak, known.residue) == ({"GPU-0": 9, "GPU-1": 7}, {"GPU-0": 4})


def test_a_prompt_that_was_counted_changes_nothing_but_the_tokens():
    known = replace(
        KNOWN, version="0.32.0", wake=2.0, reload=9.0, residue={"GPU-0": MIB}, rung=4, sleepless=True
    )
    counted = known.counted(400, 100)
    assert counted == replace(known, tokens=counted.tokens)
    assert counted.tokens.seen == 1


def test_another_version_begins_anew_but_its_tokens_are_the_models():
    known = KNOWN.counted(400, 100).of_version("0.33.0")
    assert (known.version, known.start, known.peak, known.tokens.seen) == ("0.33.0", None, {}, 1)
    assert known.started(80).or_else(KNOWN) == replace(KNOWN, version="0.33.0", start=80, tokens=known.tokens)


def test_the_rung_outlives_a_version_and_broken_sleep_does_not():
    known = replace(KNOWN, rung=2, sleepless=True).of_version("0.33.0")
    assert (known.rung, known.sleepless) == (2, False)


@pytest.mark.parametrize(
    ("after", "worth"),
    [
        (KNOWN, False),
        (replace(KNOWN, rung=2), True),
        (replace(KNOWN, sleepless=True), True),
        (replace(KNOWN, start=41.0), False),
        (replace(KNOWN, start=43.0), True),
        (replace(KNOWN, wake=1.0), True),
        (replace(KNOWN, version="0.33.0"), True),
        (KNOWN.grew({"GPU-0": 22 * GIB}), True),
        (KNOWN.grew({"GPU-1": 1}), True),
        (KNOWN.counted(400, 100), True),
    ],
)
def test_what_is_worth_keeping(after: Learned, worth: bool):
    assert notable(KNOWN, after) is worth


def test_tokens_are_kept_ever_more_seldom():
    known = kept = Learned()
    times = 0
    for _ in range(5000):
        known = known.counted(400, 100)
        if notable(kept, known):
            kept, times = known, times + 1
    assert 12 < times < 20


# Drift: over a quarter, and over 10 s or 512 MiB


@pytest.mark.parametrize(("seconds", "told"), [(49.0, False), (51.0, True), (31.0, False), (29.0, True)])
def test_a_start_that_drifts(seconds: float, told: bool):
    words = drift(KNOWN, Learned("0.33.0", start=seconds))
    assert words == ({"start": f"it starts in {seconds:.0f} s, it took 40 s"} if told else {})


def test_a_short_start_drifts_by_ten_seconds_not_by_a_quarter():
    assert not drift(Learned(start=4.0), Learned(start=13.0))
    assert drift(Learned(start=4.0), Learned(start=15.0))


def test_memory_that_drifts_is_told_with_both_numbers():
    assert drift(KNOWN, Learned(peak={"GPU-0": 26 * GIB})) == {
        "peak on GPU-0": "it takes 26.00 GiB of GPU-0, it took 20.00 GiB"
    }
    assert not drift(KNOWN, Learned(peak={"GPU-0": 24 * GIB}))
    small = Learned(peak={"GPU-0": 600 * MIB})
    assert not drift(small, Learned(peak={"GPU-0": 1000 * MIB}))
    assert drift(small, Learned(peak={"GPU-0": 1200 * MIB}))


def test_sleep_that_drifts_is_told_too():
    before = Learned("0.32.0", wake=2.0, reload=20.0, residue={"GPU-0": GIB})
    after = Learned("0.33.0", wake=9.0, reload=60.0, residue={"GPU-0": 16 * GIB})
    assert list(drift(before, after).values()) == [
        "it wakes in 9 s, it took 2 s",
        "it reloads in 60 s, it took 20 s",
        "it leaves 16.00 GiB of GPU-0 asleep, it left 1.00 GiB",
    ]
    assert not drift(before, Learned("0.33.0", wake=4.0, reload=24.0, residue={"GPU-0": int(1.3 * GIB)}))


def test_what_the_new_version_has_not_shown_does_not_drift():
    assert not drift(KNOWN, Learned("0.33.0"))


# Tokens from letters


def prompts(rng: random.Random, shortest: int, longest: int, noise: float = 0.0) -> Iterator[tuple[int, int]]:
    """(letters, tokens) of a tokenizer with 3.1 letters a token and a template of 40 tokens."""
    while True:
        letters = rng.randint(shortest, longest)
        yield letters, round(40 + letters / 3.1 * (1 + noise * rng.uniform(-1, 1)))


@pytest.mark.parametrize(
    ("shortest", "longest", "noise"), [(20, 400, 0), (100, 8000, 0), (2000, 60_000, 0), (100, 8000, 0.1)]
)
def test_after_fifty_requests_tokens_are_told_within_15_percent(shortest: int, longest: int, noise: float):
    drawn = prompts(random.Random(7), shortest, longest, noise)
    known = Tokens()
    for _ in range(50):
        known = known.count(*next(drawn))
    for letters in range(shortest, longest, (longest - shortest) // 20):
        truly = 40 + letters / 3.1
        assert abs(known.expect(letters) - truly) <= 0.15 * truly, letters


def test_a_guess_of_four_letters_a_token_would_not_do():
    """What the bound above is worth: the fixed guess breaks it wherever the template or the ratio counts."""
    assert all(abs(n / 4 - (40 + n / 3.1)) > 0.15 * (40 + n / 3.1) for n in (20, 400, 8000, 60_000))


def test_short_prompts_do_not_send_long_ones_astray():
    rng, known = random.Random(3), Tokens()
    for _ in range(200):
        letters = rng.randint(20, 60)
        known = known.count(letters, round(12 + letters / 4 + rng.uniform(-4, 4)))
    assert 15_000 < known.expect(100_000) < 40_000


def test_what_changes_is_followed():
    known = Tokens()
    for _ in range(500):
        known = known.count(1000, 250).count(3000, 750)
    for _ in range(200):
        known = known.count(1000, 500).count(3000, 1500)
    assert known.expect(2000) == pytest.approx(1000, rel=0.1)


def test_one_request_and_the_empty_prompt_break_nothing():
    assert Tokens().expect(4000) == 1000
    assert Tokens().count(1000, 250).expect(1000) == pytest.approx(250, abs=3)
    assert Tokens().count(0, 12).expect(0) >= 0


def test_a_counted_request_teaches_of_tokens_alone():
    known = Learned("0.32.0", 1.0, 2.0, 3.0, 4, {"GPU-0": 5}, {"GPU-0": 6}, rung=2, sleepless=True)
    after = known.counted(400, 100)
    assert after.tokens.seen == 1
    assert replace(after, tokens=known.tokens) == known
