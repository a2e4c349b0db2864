"""Summarises samples as one table and one JSON object: medians over the repeats, their spread, ratios to the service.

Ratios are computed within each repeat, in which both servers had the same texts and nearly the same conditions, and then summarised.
"""

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Sample, StartUp, WorkloadResult
from benchmarks.stats import Spread
from benchmarks.table import format_table

SERVICE = "service"
HEADERS = (
    "workload", "server", "req/s", "low-high", "tokens/s", "p50 s", "p99 s", "service is", "low-high", "CPU ms/req",
    "service is", "low-high", "useful/GEMM", "executed/GEMM",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One server on one workload over all repeats.

    `service_ratio`: the service's throughput over this server's; `processor_ratio`: this server's processor time over the
    service's. Both are None if the service was not measured. `processor_ms`: processor time per request. `useful_share` and
    `executed_share`: the share of the GEMM rate, by the FLOPs that `Sample` defines.
    """

    workload: str
    target: str
    requests_per_second: Spread
    tokens_per_second: Spread
    latency_p50: Spread
    latency_p99: Spread
    service_ratio: Spread | None
    processor_ms: Spread
    processor_ratio: Spread | None
    useful_share: Spread | None
    executed_share: Spread | None
    gemm_gflops: Spread
    num_tokens: int
    num_computed_tokens: int | None


def summarize(samples: Sequence[Sample]) -> list[Row]:
    """Return a row for each workload and server, in the order of their first samples."""
    keys = dict.fromkeys((sample.workload, sample.target) for sample in samples)
    service = {(sample.workload, sample.repeat): sample for sample in samples if sample.target == SERVICE}
    rows: list[Row] = []
    for workload, target in keys:
        own = [sample for sample in samples if (sample.workload, sample.target) == (workload, target)]
        rows.append(_row(own, [service.get((workload, sample.repeat)) for sample in own]))
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    return format_table(HEADERS, [_cells(row) for row in rows])


def format_start_ups(start_ups: Sequence[StartUp]) -> str:
    cells = [
        (item.workload, item.target, f"{item.ready_seconds:.1f}", f"{item.resident_bytes / 1e6:,.0f}")
        for item in start_ups
    ]
    return format_table(("workload", "server", "start to ready s", "resident MB"), cells)


def as_json(results: Sequence[WorkloadResult], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return everything: arguments, machine, summary rows and every sample; only JSON types."""
    samples = [sample for result in results for sample in result.samples]
    return {
        "arguments": arguments,
        "machine": {"cpus": os.cpu_count(), "processor": _processor(), "python": platform.python_version()},
        "largest_score_difference": max(result.largest_score_difference for result in results),
        "rows": [dataclasses.asdict(row) for row in summarize(samples)],
        "start_ups": [dataclasses.asdict(item) for result in results for item in result.start_ups],
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }


def _row(own: Sequence[Sample], service: Sequence[Sample | None]) -> Row:
    computed = [sample.num_computed_tokens for sample in own if sample.num_computed_tokens is not None]
    pairs = [(sample, other) for sample, other in zip(own, service, strict=True) if other is not None]
    ratios = [sample.seconds / other.seconds for sample, other in pairs]
    processor_ratios = [
        sample.processor_seconds / other.processor_seconds for sample, other in pairs if other.processor_seconds
    ]
    return Row(
        workload=own[0].workload,
        target=own[0].target,
        requests_per_second=Spread.of([sample.num_requests / sample.seconds for sample in own]),
        tokens_per_second=Spread.of([sample.num_tokens / sample.seconds for sample in own]),
        latency_p50=Spread.of([sample.latency_p50 for sample in own]),
        latency_p99=Spread.of([sample.latency_p99 for sample in own]),
        service_ratio=Spread.of(ratios) if ratios else None,
        processor_ms=Spread.of([1000 * sample.processor_seconds / sample.num_requests for sample in own]),
        processor_ratio=Spread.of(processor_ratios) if processor_ratios else None,
        useful_share=_gemm_share(own, [sample.useful_flops for sample in own]),
        executed_share=_gemm_share(own, [sample.executed_flops for sample in own]),
        gemm_gflops=Spread.of([sample.gemm_flops_per_second / 1e9 for sample in own]),
        num_tokens=own[0].num_tokens,
        num_computed_tokens=computed[0] if computed else None,
    )


def _gemm_share(samples: Sequence[Sample], flops: Sequence[int | None]) -> Spread | None:
    """Return the samples' `flops` as a share of the GEMM rate; None if no sample has any."""
    pairs = zip(samples, flops, strict=True)
    shares = [count / own.seconds / own.gemm_flops_per_second for own, count in pairs if count is not None]
    return Spread.of(shares) if shares else None


def _cells(row: Row) -> tuple[str, ...]:
    rates, ratio = row.requests_per_second, row.service_ratio
    processor_ratio = row.processor_ratio
    useful, executed = row.useful_share, row.executed_share
    return (
        row.workload,
        row.target,
        f"{rates.median:,.1f}",
        f"{rates.low:,.1f}-{rates.high:,.1f}",
        f"{row.tokens_per_second.median:,.0f}",
        f"{row.latency_p50.median:.3f}",
        f"{row.latency_p99.median:.3f}",
        f"{ratio.median:.2f}x" if ratio else "",
        f"{ratio.low:.2f}-{ratio.high:.2f}" if ratio else "",
        f"{row.processor_ms.median:,.3f}",
        f"{processor_ratio.median:.2f}x" if processor_ratio else "",
        f"{processor_ratio.low:.2f}-{processor_ratio.high:.2f}" if processor_ratio else "",
        f"{useful.median:.2f}" if useful else "",
        f"{executed.median:.2f}" if executed else "",
    )


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        return platform.processor()
    return names[0] if names else platform.processor()
