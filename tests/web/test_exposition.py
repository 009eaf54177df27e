"""The engines' own metrics in one exposition: each family once, each sample with its profile, nothing else."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from supervisor.web.exposition import merged

ONE = b"""# HELP vllm:tokens_total Tokens.
# TYPE vllm:tokens_total counter
vllm:tokens_total{engine="0",model_name="a b"} 5.0
# HELP vllm:ttft_seconds Time.
# TYPE vllm:ttft_seconds histogram
vllm:ttft_seconds_bucket{le="1.0"} 1.0
vllm:ttft_seconds_bucket{le="+Inf"} 2.0
vllm:ttft_seconds_count 2.0
vllm:ttft_seconds_sum 3.0
# HELP process_cpu_seconds_total Not asked for.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1.0
"""


def test_each_family_once_and_each_sample_with_its_profile() -> None:
    text = merged({"llama_0": ONE, "coder_1": ONE}).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert sorted(families) == ["vllm:tokens", "vllm:ttft_seconds"]
    assert text.count("# TYPE vllm:ttft_seconds ") == 1
    samples = families["vllm:tokens"].samples
    assert [sample.labels["profile"] for sample in samples] == ["llama_0", "coder_1"]
    assert samples[0].labels["model_name"] == "a b"
    assert len(families["vllm:ttft_seconds"].samples) == 8


def test_what_is_no_sample_is_left_out() -> None:
    junk = b"# TYPE vllm:x gauge\nvllm:x{\nvllm:y 1\n\xff\xfe\n# TYPE vllm:\nvllm:x 1\n"
    assert merged({"a_0": junk}) == b'# TYPE vllm:x gauge\nvllm:x{profile="a_0"} 1\n'


def test_of_nothing_comes_nothing() -> None:
    assert merged({}) == merged({"a_0": b""}) == b""
