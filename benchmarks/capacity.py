"""Predicts what one engine can score and how many engines a number of trainers needs, without measuring.

`python -m benchmarks.capacity` prints docs/scaling.md's table; `benchmarks.capacity_check` compares the model
with measured runs. An engine has four limits, each in items (sequences to be scored) per second:

- arithmetic: the FLOPs of an item's own tokens, those of its prompt divided among the responses that share it, and the
  device's GEMM rate times the share of it that the engine reaches;
- the event loop: one process's requests per second;
- tokenization: one thread's tokens per second;
- the network: bytes per second.

The lowest of them is the bottleneck.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.flops import ModelShape, Work, trunk_flops
from benchmarks.table import format_table

BYTES_PER_TOKEN = 4.6
"""Bytes per token of a request's text: characters of English per token, and JSON's escapes."""
BYTES_PER_REQUEST = 700
"""Bytes of the headers and JSON around a request and its response."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A process with its device. `gemm_flops`: the rate from `benchmarks.gemm` on the model's shapes; `efficiency`: the share of
    it that the engine reaches (`executed/GEMM`); `bytes_per_value`: the size of weights and activations.
    """

    name: str
    gemm_flops: float
    efficiency: float
    bytes_per_value: int
    batch_tokens: int
    loop_requests: float
    tokenizer_tokens: float
    network_bytes: float = 10e9 / 8


@dataclass(frozen=True, slots=True)
class Traffic:
    """Trainers that each send all their rollouts once per step."""

    num_trainers: int
    num_rollouts: int
    step_seconds: float
    num_responses: int
    prompt_tokens: int
    response_tokens: int
    items_per_request: int = 1

    @property
    def items_per_second(self) -> float:
        return self.num_trainers * self.num_rollouts / self.step_seconds

    @property
    def tokens(self) -> int:
        """Tokens of one item: prompt and response."""
        return self.prompt_tokens + self.response_tokens

    @property
    def sharing_ratio(self) -> float:
        """1 - computed tokens / tokens, if all responses to a prompt are in one batch."""
        return 1 - group_work(self).num_rows / (self.num_responses * self.tokens)


def group_work(traffic: Traffic) -> Work:
    """The work for a prompt computed once with its responses: rows, query-key pairs, scored positions."""
    prompt, response, number = traffic.prompt_tokens, traffic.response_tokens, traffic.num_responses
    own_pairs = response * prompt + response * (response + 1) // 2
    return Work(prompt + number * response, prompt * (prompt + 1) // 2 + number * own_pairs, number)


def item_flops(shape: ModelShape, traffic: Traffic) -> float:
    return trunk_flops(shape, group_work(traffic), pruned_last_layer=True) / traffic.num_responses


def items_per_second(engine: Engine, shapes: Sequence[ModelShape], traffic: Traffic) -> dict[str, float]:
    """Items per second by bottleneck; every model of `shapes` scores every item, on one device, after one tokenization."""
    flops = sum(item_flops(shape, traffic) for shape in shapes)
    num_bytes = traffic.tokens * BYTES_PER_TOKEN + BYTES_PER_REQUEST / traffic.items_per_request
    return {
        "arithmetic": engine.gemm_flops * engine.efficiency / flops,
        "event loop": engine.loop_requests * traffic.items_per_request,
        "tokenization": engine.tokenizer_tokens / traffic.tokens,
        "network": engine.network_bytes / num_bytes,
    }


def working_bytes_per_token(shape: ModelShape, bytes_per_value: int) -> int:
    """Memory of a forward pass. Its peak is in an MLP: the residual, its norm, and three values of the intermediate size
    (activated gate, up, their product). Nothing is kept between layers, and no cache outlives a batch.
    """
    return bytes_per_value * (2 * shape.hidden_size + 3 * shape.intermediate_size)


def weight_bytes(shape: ModelShape, vocab_size: int, bytes_per_value: int) -> int:
    linear = sum(num_in * num_out for num_in, num_out in shape.projections)
    return bytes_per_value * (shape.num_layers * linear + vocab_size * shape.hidden_size)


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    engine: Engine
    shape: ModelShape
    vocab_size: int
    traffic: Traffic
    num_models: int = 2
    max_load: float = 0.7
    """Share of an engine's capacity to plan for; the rest is for bursts and for a failed engine."""

    @property
    def capacities(self) -> dict[str, float]:
        return items_per_second(self.engine, [self.shape] * self.num_models, self.traffic)

    @property
    def bottleneck(self) -> str:
        return min(self.capacities, key=lambda name: self.capacities[name])

    @property
    def num_engines(self) -> int:
        return math.ceil(self.traffic.items_per_second / (self.max_load * min(self.capacities.values())))

    @property
    def memory_bytes(self) -> int:
        """GB of an engine's device: weights and one batch."""
        weights = self.num_models * weight_bytes(self.shape, self.vocab_size, self.engine.bytes_per_value)
        return weights + self.engine.batch_tokens * working_bytes_per_token(self.shape, self.engine.bytes_per_value)

    @property
    def burst_seconds(self) -> float:
        """Seconds until the last response if all trainers send at once."""
        num_items = self.traffic.num_trainers * self.traffic.num_rollouts
        return num_items / (self.num_engines * min(self.capacities.values()))

    @property
    def burst_connections(self) -> int:
        """Connections open at one engine at that time."""
        requests = self.traffic.num_trainers * self.traffic.num_rollouts / self.traffic.items_per_request
        return math.ceil(requests / self.num_engines)


LLAMA_7B = ModelShape(32, 4096, 11008, 32, 32, 128)
SMOLLM2_135M = ModelShape(30, 576, 1536, 9, 3, 64)
CPU = Engine("2 cores, AVX-512", 330e9, 0.59, 4, 4096, loop_requests=2479, tokenizer_tokens=570e3)
"""This project's machine: the table in docs/performance.md; one thread tokenizes 507,000 (long texts) to 815,000 (short ones) tokens a second."""
H100 = Engine("H100", 700e12, 0.6, 2, 32768, loop_requests=2479, tokenizer_tokens=570e3)
"""Not measured: 0.7 of the data sheet's 989 TFLOP/s for bf16 without sparsity, the same efficiency of
the engine as on a CPU, and a host CPU like this project's.
"""
TRAINERS = Traffic(1000, 64, step_seconds=60, num_responses=8, prompt_tokens=256, response_tokens=512)
SCENARIOS = (
    Scenario("7B on H100", H100, LLAMA_7B, 32000, TRAINERS),
    Scenario("135M on H100", H100, SMOLLM2_135M, 49152, TRAINERS),
    Scenario("135M on H100, 64 items per request", H100, SMOLLM2_135M, 49152, replace(TRAINERS, items_per_request=64)),
    Scenario("135M on 2 cores", CPU, SMOLLM2_135M, 49152, TRAINERS),
)
HEADERS = (
    "models", "bottleneck", "arithmetic", "event loop", "tokenization", "network", "engines", "GB per engine",
    "all at once: s", "connections per engine",
)  # fmt: skip


def cells(scenario: Scenario) -> tuple[str, ...]:
    capacities = [f"{value:,.1f}" if value < 10 else f"{value:,.0f}" for value in scenario.capacities.values()]
    return (
        scenario.name,
        scenario.bottleneck,
        *capacities,
        f"{scenario.num_engines:,}",
        f"{scenario.memory_bytes / 1e9:.1f}",
        f"{scenario.burst_seconds:.0f}",
        f"{scenario.burst_connections:,}",
    )


def prediction() -> str:
    return format_table(HEADERS, [cells(scenario) for scenario in SCENARIOS])


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__).parse_args()
    print(f"{TRAINERS.items_per_second:,.0f} items/s of {TRAINERS.tokens} tokens, {TRAINERS.sharing_ratio:.2f} shared")
    print(prediction())


if __name__ == "__main__":
    main()
