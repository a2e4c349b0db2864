"""The results of a measurement: one record per turn, and the servers' start-up times. Plain data, ready for JSON."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One server's turn in one repeat.

    `useful_flops`: for every sequence in full, as without sharing; None if the server computes no scores. `executed_flops`: for the
    rows that the server reports as computed; None if it reports none. `gemm_flops_per_second`: measured before and after this turn.
    `processor_seconds`: of the server only.
    """

    workload: str
    target: str
    repeat: int
    seconds: float
    num_requests: int
    num_tokens: int
    num_computed_tokens: int | None
    latency_p50: float
    latency_p99: float
    processor_seconds: float
    useful_flops: int | None
    executed_flops: int | None
    gemm_flops_per_second: float


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds until a server was ready, and its resident memory after the runs (after the start if there were none)."""

    workload: str
    target: str
    ready_seconds: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class WorkloadResult:
    samples: tuple[Sample, ...]
    start_ups: tuple[StartUp, ...]
    largest_score_difference: float
