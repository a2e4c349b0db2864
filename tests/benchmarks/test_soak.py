"""The soak's verdict: a leak is found, and the prefix cache that fills up to its limit is none."""

import pytest

from benchmarks.soak import Minute, is_full, verdict
from benchmarks.watch import Sample, Watched

LIMIT = 64e6


def judged(megabytes: tuple[float, float, float], *, cache_is_full: bool) -> tuple[str, bool]:
    """What is said of a run of three minutes with so much memory in each."""
    samples = [
        Sample(float(second), int(1e6 * megabytes[second // 60]), num_files=20, num_threads=8) for second in range(180)
    ]
    minutes = [Minute([0.01], cache_is_full=cache_is_full) for _ in range(3)]
    words, good = verdict(Watched(samples, [0.001]), minutes, LIMIT)
    return "\n".join(words), good


@pytest.mark.parametrize(
    ("megabytes", "cache_is_full", "good"),
    [
        ((400, 500, 500), True, True),
        ((400, 500, 530), True, False),
        ((400, 500, 560), False, True),  # the cache may have filled
        ((400, 500, 600), False, False),  # by more than its limit
    ],
)
def test_memory_may_grow_by_the_prefix_cache_as_long_as_that_is_not_full(
    megabytes: tuple[float, float, float], *, cache_is_full: bool, good: bool
) -> None:
    words, is_good = judged(megabytes, cache_is_full=cache_is_full)
    assert is_good == good, words
    assert ("was full" if cache_is_full else "may grow by 64 MB") in words


def test_a_cache_is_full_when_every_model_has_evicted_pages() -> None:
    line = 'reward_prefix_cache_evicted_pages_total{{model="{}"}} {}\n'
    assert is_full(line.format("safety", "3.0") + line.format("helpfulness", "1.0"))
    assert not is_full(line.format("safety", "3.0") + line.format("helpfulness", "0.0"))
    assert not is_full("# no cache at all\n")
