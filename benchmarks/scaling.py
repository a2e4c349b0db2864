"""Measures prefix sharing with several engines: `python -m benchmarks.scaling` prints the table of docs/scaling.md.

It sends the workload `groups` (6 prompts x 16 responses, one per request, all at once) to the service on a local Ray cluster,
with different numbers of engines, and requests routed by load or by prompt. It measures the sharing ratio, 1 - computed tokens / tokens, from
the responses' `usage`: how often responses to one prompt were on one engine. The engines share this machine's cores, so more engines are not
faster; the throughput shows the overhead of Ray.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import tempfile
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.client import Endpoint
from benchmarks.flops import shared_work, whole_work
from benchmarks.load import closed_loop
from benchmarks.stats import Spread
from benchmarks.table import format_table
from benchmarks.workloads import Workload, build_workload, tokenizer_words

WORK_DIR = Path(__file__).parent / "work"
WAYS = ("load", "prompt")
WARM_UP_SEED = 10_000
TOKENS = re.compile(r'^reward_tokens_total\{replica="([^"]+)".*\} (\S+)$', re.MULTILINE)
HEADERS = ("engines", "routed by", "sharing ratio", "low-high", "of what there is", "busiest engine's part", "req/s")


@dataclass(frozen=True, slots=True)
class Shared:
    """One pass. `ratio` is the share of tokens that sharing saved, `possible` the maximum for these texts;
    `busiest` is the busiest engine's share of all tokens.
    """

    num_engines: int
    routed_by: str
    ratio: float
    possible: float
    busiest: float
    requests_per_second: float


@contextmanager
def cluster() -> Iterator[int]:
    """Runs a small Ray Serve on this machine; yields the port of its proxy."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    directory = tempfile.mkdtemp(prefix="ray-")
    try:
        ray.init(
            num_cpus=32,  # a number for Ray's scheduler, not the machine's cores
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            _temp_dir=directory,
            log_to_driver=False,
            logging_level="ERROR",
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})
        yield port
    finally:
        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def deploy(checkpoint: Path, num_engines: int, *, by_prompt: bool) -> None:
    """Returns once this many engines serve the checkpoint."""
    from ray import serve

    from app.ray_serve import app

    args = {
        "safety_model": "",
        "helpfulness_model": str(checkpoint),
        "ray_min_replicas": num_engines,
        "ray_max_replicas": num_engines,
        "ray_route_by_prompt": by_prompt,
    }
    serve.run(app(args), name="scaling")


def tokens_by_engine(port: int) -> dict[str, float]:
    tokens: dict[str, float] = defaultdict(float)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        for engine, value in TOKENS.findall(page.read().decode()):
            tokens[engine] += float(value)
    return tokens


def measure(port: int, workload: Workload, tokenizer: Tokenizer) -> tuple[float, float, float, float]:
    """Runs one pass over the texts: (sharing ratio, possible ratio, busiest engine's share of all tokens, requests/s)."""
    before = tokens_by_engine(port)
    bodies = [json.dumps({"items": [{"text": text}]}).encode() for text in workload.texts]
    run = asyncio.run(closed_loop(Endpoint(port, "/score"), bodies, workload.concurrency))
    usages = [json.loads(body)["usage"] for body in run.bodies]
    num_tokens = sum(usage["num_tokens"] for usage in usages)
    num_computed_tokens = sum(usage["num_computed_tokens"] for usage in usages)
    own = [tokens - before.get(engine, 0.0) for engine, tokens in tokens_by_engine(port).items()]
    sequences = [encoding.ids for encoding in tokenizer.encode_batch(list(workload.texts))]
    possible = 1 - shared_work(sequences).num_rows / whole_work(sequences).num_rows
    return 1 - num_computed_tokens / num_tokens, possible, max(own) / sum(own), run.requests_per_second


def run(checkpoint: Path, numbers: Sequence[int], ways: Sequence[str], repeats: int) -> list[Shared]:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    words = tokenizer_words(tokenizer.get_vocab())
    passes: list[Shared] = []
    with cluster() as port:
        for num_engines in numbers:
            for routed_by in ways:
                deploy(checkpoint, num_engines, by_prompt=routed_by == "prompt")
                warm_up = build_workload("groups", words, WARM_UP_SEED)
                measure(port, replace(warm_up, texts=warm_up.texts[::8]), tokenizer)
                for seed in range(repeats):
                    measured = measure(port, build_workload("groups", words, seed), tokenizer)
                    passes.append(Shared(num_engines, routed_by, *measured))
    return passes


def cells(passes: Sequence[Shared]) -> list[tuple[str, ...]]:
    """One row per number of engines and kind of routing, over its passes."""
    rows: list[tuple[str, ...]] = []
    for key in dict.fromkeys((each.num_engines, each.routed_by) for each in passes):
        own = [each for each in passes if (each.num_engines, each.routed_by) == key]
        ratio = Spread.of([each.ratio for each in own])
        part = Spread.of([each.ratio / each.possible for each in own])
        busiest = Spread.of([each.busiest for each in own])
        rate = Spread.of([each.requests_per_second for each in own])
        rows.append(
            (
                str(key[0]),
                key[1],
                f"{ratio.median:.2f}",
                f"{ratio.low:.2f}-{ratio.high:.2f}",
                f"{part.median:.0%}",
                f"{busiest.median:.2f}",
                f"{rate.median:.1f}",
            )
        )
    return rows


def main() -> None:
    """Measures, prints the table, and prints every pass as one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--engines", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--routed-by", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=3, help="each with texts of its own")
    parser.add_argument("--work-dir", type=Path, default=WORK_DIR, help="for the checkpoint")
    arguments = parser.parse_args()
    from benchmarks.checkpoints import ensure_checkpoints

    checkpoint = ensure_checkpoints(arguments.work_dir)["deep"].absolute()
    passes = run(checkpoint, arguments.engines, arguments.routed_by, arguments.repeats)
    print(format_table(HEADERS, cells(passes)))
    print(json.dumps([asdict(each) for each in passes]))


if __name__ == "__main__":
    main()
