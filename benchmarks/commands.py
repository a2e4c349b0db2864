"""Commands of `python -m benchmarks`.

`run` compares the servers. `checkpoints` makes the checkpoints that they load. `start-up` times the service's start.
`gpu` measures one GPU (docs/gpu.md). `large-body` sends `/ppo-reward` bodies of up to 60 MB, `long-texts` sends texts of 12 MB;
both measure how long other requests wait meanwhile. `invariance` measures the cost of bitwise batch invariance, `neighbour` the
cost of another process that computes on the same cores.
"""

import argparse
import json
import logging
import shlex
import sys
from pathlib import Path

from benchmarks.invariance import format_invariance, measure_invariance
from benchmarks.large_body import format_large_bodies, measure_large_bodies
from benchmarks.long_texts import format_long_texts, measure_long_texts
from benchmarks.measure import Plan, measure_workload
from benchmarks.neighbour import format_neighbour, measure_neighbour
from benchmarks.servers.targets import (
    BASELINE,
    TARGET_NAMES,
    VARIANT_PREFIX,
    VLLM_NAMES,
    Options,
    parse_settings,
    parse_variant,
)
from benchmarks.start_up import measure_start_ups
from benchmarks.summary import as_json, format_rows, format_start_ups, summarize
from benchmarks.workloads import WORKLOADS

WORK_DIR = Path(__file__).parent / "work"

logger = logging.getLogger("benchmarks")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    arguments = _parser().parse_args()
    match arguments.command:
        case "checkpoints":
            for name, path in _checkpoints(arguments.work_dir).items():
                print(f"{name}: {path}")
        case "start-up":
            command = _service_command(arguments)
            print(format_start_ups(measure_start_ups(command, arguments.repeats, arguments.work_dir / "logs")))
        case "large-body":
            command = _service_command(arguments)
            print(format_large_bodies(measure_large_bodies(command, arguments.repeats, arguments.work_dir / "logs")))
        case "long-texts":
            print(format_long_texts(measure_long_texts(_service_command(arguments), arguments.work_dir)))
        case "invariance":
            print(format_invariance(measure_invariance(arguments.work_dir, arguments.repeats, arguments.threads)))
        case "neighbour":
            print(format_neighbour(measure_neighbour(arguments.work_dir, arguments.repeats)))
        case _:
            run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables, and prints one JSON object on the last line."""
    plan = _plan(arguments)
    checkpoints = _checkpoints(arguments.work_dir)
    results = [measure_workload(name, checkpoints, plan) for name in arguments.workloads]
    rows = summarize([sample for result in results for sample in result.samples])
    gemm = [row.gemm_gflops.median for row in rows]
    difference = max(result.largest_score_difference for result in results)
    print(format_rows(rows))
    print(f"\nGEMM rate {min(gemm):.0f}-{max(gemm):.0f} GFLOP/s; scores agree within {difference:.1e}\n")
    print(format_start_ups([item for result in results for item in result.start_ups]))
    print(json.dumps(as_json(results, {name: str(value) for name, value in vars(arguments).items()})))


def _plan(arguments: argparse.Namespace) -> Plan:
    targets = list(arguments.servers)
    if arguments.vllm_python is None and VLLM_NAMES & set(targets):
        logger.warning("vLLM is left out: give --vllm-python, the Python of an environment that has it")
        targets = [name for name in targets if name not in VLLM_NAMES]
    if arguments.rate is not None and "in-process" in targets:
        logger.warning("in-process is left out: it has a closed loop only")
        targets.remove("in-process")
    variants = dict(arguments.variant)
    baseline_command = tuple(shlex.split(arguments.baseline_command))
    targets[1:1] = [f"{VARIANT_PREFIX}{name}" for name in variants] + [BASELINE] * bool(baseline_command)
    options = Options(
        num_threads=arguments.threads,
        variants=variants,
        padded_batch_size=arguments.padded_batch_size,
        service_command=_service_command(arguments),
        baseline_command=baseline_command,
        vllm_python=arguments.vllm_python,
        vllm_arguments=tuple(shlex.split(arguments.vllm_arguments)),
        vllm_environment=arguments.vllm_environment,
    )
    return Plan(
        targets=tuple(targets),
        repeats=arguments.repeats,
        seed=arguments.seed,
        rate=arguments.rate,
        gemm_rows=arguments.gemm_rows,
        pruned_last_layer=not arguments.full_last_layer,
        options=options,
        log_dir=arguments.work_dir / "logs",
    )


def _service_command(arguments: argparse.Namespace) -> tuple[str, ...]:
    return tuple(shlex.split(arguments.service_command)) or Options().service_command


def _checkpoints(work_dir: Path) -> dict[str, Path]:
    from benchmarks.checkpoints import ensure_checkpoints

    return ensure_checkpoints(work_dir)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=WORK_DIR, help="for checkpoints and the servers' logs")
    parser.add_argument("--service-command", default="", help="in place of this environment's `reward-service serve`")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("checkpoints", help="make the checkpoints")
    commands.add_parser("gpu", help="measure one GPU; needs torch and transformers alone")
    start_up_parser = commands.add_parser("start-up", help="time the service's start with its default models")
    large_parser = commands.add_parser(
        "large-body", help="large /ppo-reward bodies, and how long others wait meanwhile"
    )
    commands.add_parser("long-texts", help="very long texts, and how long others wait meanwhile")
    invariance_parser = commands.add_parser("invariance", help="what equal bits in any company cost")
    invariance_parser.add_argument("--threads", type=int, default=2)
    neighbour_parser = commands.add_parser("neighbour", help="what another process that computes costs")
    for each in (neighbour_parser, start_up_parser, large_parser, invariance_parser):
        each.add_argument("--repeats", type=int, default=3)
    run_parser = commands.add_parser(
        "run", help="compare servers", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = run_parser.add_argument
    add("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    add("--servers", nargs="+", choices=list(TARGET_NAMES), default=list(TARGET_NAMES))
    add("--repeats", type=int, default=3, help="each with texts of its own")
    add("--seed", type=int, default=0)
    add("--rate", type=float, help="open loop: requests/s, Poisson arrivals; without it a closed loop")
    add("--threads", type=int, default=2, help="of each server's forward and of the GEMM measurement")
    add("--gemm-rows", type=int, default=4096, help="rows of the measured products: the service's batch")
    add(
        "--full-last-layer",
        action="store_true",
        help="count the last layer's FLOPs for all rows, not the scored ones alone",
    )
    add("--padded-batch-size", type=int, default=16, help="1 is what OpenRLHF's script does with single queries")
    add(
        "--variant",
        nargs="+",
        type=parse_variant,
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="also run the service with these environment variables, as the server service:NAME",
    )
    add("--baseline-command", default="", help="also run another build of the service, as the server baseline")
    add("--vllm-python", type=Path, help="the Python of an environment that has vLLM; without it vLLM is left out")
    add("--vllm-environment", type=parse_settings, default={}, metavar="KEY=VALUE,...", help="for vLLM's process alone")
    add("--vllm-arguments", default="", help="further arguments of `vllm serve`")
    return parser
