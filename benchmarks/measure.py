"""Measures one workload on several servers: they start together, take turns, and must agree with each other and the reference.

Every repeat has different texts, so a server's cache is of no use to the next repeat, and rotates the order of the servers. A signal suspends
the waiting servers, and the machine's GEMM rate is measured before and after each turn.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.agreement import largest_difference
from benchmarks.flops import ModelShape, Work, interpolated_work, shared_work, trunk_flops, whole_work
from benchmarks.reference import GemmMeter, reference_scores
from benchmarks.results import Sample, StartUp, WorkloadResult
from benchmarks.servers.targets import HttpTarget, Options, Scored, Target, launched
from benchmarks.stats import percentile
from benchmarks.workloads import Workload, build_workload, tokenizer_words

NUM_ORACLE_TEXTS = 8
WARM_UP_SEED = -1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a measurement. `rate` (requests/s) turns the closed loop into an open one; `pruned_last_layer`: whether the service computes its last layer only for scored rows."""

    targets: tuple[str, ...]
    repeats: int
    seed: int
    rate: float | None
    gemm_rows: int
    pruned_last_layer: bool
    options: Options
    log_dir: Path


@dataclass(frozen=True, slots=True)
class Context:
    """State that a workload's repeats share."""

    name: str
    plan: Plan
    tokenizer: Tokenizer
    words: Sequence[str]
    shape: ModelShape

    def workload(self, seed: int) -> Workload:
        return build_workload(self.name, self.words, seed)


def measure_workload(name: str, checkpoints: Mapping[str, Path], plan: Plan) -> WorkloadResult:
    """Measure the workload `name` on the plan's servers. Raises DisagreementError, LoadError or ServerError."""
    checkpoint = checkpoints[build_workload(name, ["word"], 0).checkpoint]
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    shape = ModelShape.from_config(json.loads((checkpoint / "config.json").read_text()))
    context = Context(name, plan, tokenizer, tokenizer_words(tokenizer.get_vocab()), shape)
    sampled = context.workload(plan.seed).texts[:NUM_ORACLE_TEXTS]
    expected = reference_scores(checkpoint, sampled, plan.options.num_threads)

    samples: list[Sample] = []
    differences: list[float] = []
    with contextlib.ExitStack() as stack:
        meter = stack.enter_context(
            GemmMeter(checkpoints["deep"] / "config.json", plan.gemm_rows, plan.options.num_threads)
        )
        targets: dict[str, Target] = {}
        for target_name in plan.targets:
            logger.info("%s: starting %s", name, target_name)
            targets[target_name] = stack.enter_context(launched(target_name, checkpoint, plan.options, plan.log_dir))
            _run(targets[target_name], _warm_up(context), None, 0)
            targets[target_name].process.pause()
        for repeat in range(plan.repeats):
            scored = _repeat(context, repeat, targets, meter)
            samples += scored.samples
            differences.append(largest_difference(scored.scores))
            if repeat == 0:
                sampled_scores = {target: values[:NUM_ORACLE_TEXTS] for target, values in scored.scores.items()}
                differences.append(largest_difference({"transformers": expected, **sampled_scores}))
        start_ups = tuple(_start_up(name, target_name, target) for target_name, target in targets.items())
    return WorkloadResult(tuple(samples), start_ups, max(differences))


@dataclass(frozen=True, slots=True)
class _Repeat:
    samples: list[Sample]
    scores: dict[str, list[float]]


def _repeat(context: Context, repeat: int, targets: Mapping[str, Target], meter: GemmMeter) -> _Repeat:
    workload = context.workload(context.plan.seed + repeat)
    sequences = [encoding.ids for encoding in context.tokenizer.encode_batch(list(workload.texts))]
    work = whole_work(sequences), shared_work(sequences)
    result = _Repeat([], {})
    names = list(targets)
    turns = names[repeat % len(names) :] + names[: repeat % len(names)]
    before = meter.measure()
    for target_name in turns:
        target = targets[target_name]
        with _awake(target):
            started = target.process.processor_seconds()
            scored = _run(target, workload, context.plan.rate, context.plan.seed + repeat)
            processor_seconds = target.process.processor_seconds() - started
        after = meter.measure()
        sample = _sample(context, (target_name, repeat), scored, work, processor_seconds, (before + after) / 2)
        logger.info(
            "%s %d: %s %.2f s, %.2f s of the processors",
            context.name,
            repeat,
            target_name,
            sample.seconds,
            processor_seconds,
        )
        result.samples.append(sample)
        if scored.scores:
            result.scores[target_name] = scored.scores
        before = after
    return result


def _sample(
    context: Context,
    turn: tuple[str, int],
    scored: Scored,
    work: tuple[Work, Work],
    processor_seconds: float,
    gemm_rate: float,
) -> Sample:
    """Return the sample of one turn; `turn` is (server, repeat), `work` the texts' work without and with sharing."""
    target, repeat = turn
    whole, shared = work
    computed = [reply.num_computed_tokens for reply in scored.replies if reply.num_computed_tokens is not None]
    num_computed_tokens = sum(computed) if computed else None
    executed_flops = None
    if num_computed_tokens is not None:
        executed = interpolated_work(whole, shared, num_computed_tokens)
        executed_flops = trunk_flops(context.shape, executed, pruned_last_layer=context.plan.pruned_last_layer)
    return Sample(
        workload=context.name,
        target=target,
        repeat=repeat,
        seconds=scored.run.seconds,
        num_requests=len(scored.replies),
        num_tokens=whole.num_rows,
        num_computed_tokens=num_computed_tokens,
        latency_p50=percentile(scored.run.latencies, 50),
        latency_p99=percentile(scored.run.latencies, 99),
        processor_seconds=processor_seconds,
        useful_flops=trunk_flops(context.shape, whole) if scored.scores else None,
        executed_flops=executed_flops,
        gemm_flops_per_second=gemm_rate,
    )


def _warm_up(context: Context) -> Workload:
    """Return warm-up texts: a quarter of a repeat's, with other words."""
    workload = context.workload(WARM_UP_SEED)
    texts = workload.texts[: max(1, len(workload.texts) // 4)]
    return Workload(workload.name, workload.checkpoint, workload.concurrency, texts)


@contextlib.contextmanager
def _awake(target: Target) -> Iterator[None]:
    target.process.resume()
    try:
        yield
    finally:
        target.process.pause()


def _run(target: Target, workload: Workload, rate: float | None, seed: int) -> Scored:
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        if rate is not None and isinstance(target, HttpTarget):
            return runner.run(target.open(workload.texts, rate, seed))
        return runner.run(target.closed(workload.texts, workload.concurrency))


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's loop factory if it is installed, which halves the client's cost."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _start_up(workload: str, name: str, target: Target) -> StartUp:
    return StartUp(workload, name, target.process.start_seconds, target.process.resident_bytes())
