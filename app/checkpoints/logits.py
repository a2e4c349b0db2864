"""Measures what a causal language model's class computes between its last states and its logits.

Granite divides its logits, Cohere multiplies them, Gemma caps them, MiniCPM3 divides the states first, each by config keys of
its own. Instead of reading such keys, we run the class with a trunk that returns given states and an output embedding of a
few rows.
"""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from app.engine.foreign_code import ForeignCodeError, foreign_code

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_ROWS = 4
NUM_STATES = 16
SMALL, LARGE = 1e-3, 1e9
"""Factors of the states: with SMALL a capped logit stays in its linear range, with LARGE it reaches its cap."""
TOLERANCE = 1e-6
"""Relative error allowed, because some classes compute logits in float32."""


class LogitsError(Exception):
    """The class's logits cannot be computed, or are no scaled and capped products of states and rows; see the message."""


@dataclass(frozen=True, slots=True)
class LogitRule:
    """logit = softcap * tanh(x / (divisor * softcap)), or x / divisor without a cap, where x = row . state + bias."""

    divisor: float = 1.0
    softcap: float | None = None

    def __call__(self, products: Tensor) -> Tensor:
        scaled = products / self.divisor
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


class TrunkOutput(BaseModelOutputWithPast):
    """Last states, and None for every other attribute that a class may read from the output, such as `router_logits`."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class GivenStates(nn.Module):
    """Replaces a trunk: returns `states` for any input. Its attributes are the trunk's own, such as Falcon-H1's
    `lm_head_multiplier`, except that submodules, such as OPT's decoder, are this module again."""

    states: Tensor

    def __init__(self, trunk: PreTrainedModel) -> None:
        super().__init__()
        self._replaced = (trunk,)  # in a tuple, so that it is not registered as a submodule

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_replaced"][0], name)
        return self if isinstance(value, nn.Module) else value

    def forward(self, *_: Any, **__: Any) -> TrunkOutput:
        return TrunkOutput(last_hidden_state=self.states)


def measure_logits(config: PreTrainedConfig, hidden_size: int) -> LogitRule:
    """The rule of transformers' causal class for `config`. Reads no weights; the class is built on `meta`.

    Raises LogitsError.
    """
    step = OutputStep(config, hidden_size)
    states = torch.randn(NUM_STATES, hidden_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = float((step.logits(states * SMALL) / step.products(states * SMALL)).median())
    if not math.isfinite(slope) or slope <= 0:
        raise LogitsError(f"{step.name} gives logits of {slope} times the product of row and state")
    cap = float(step.logits(states * LARGE).abs().max())
    rule = LogitRule(exact(1 / slope), exact(cap) if cap < slope * LARGE * 1e-3 else None)
    for factor in (SMALL, 1.0, 10.0, 100.0):
        expected, got = rule(step.products(states * factor)), step.logits(states * factor)
        if not torch.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max())):
            raise LogitsError(f"{step.name} gives logits that are not scaled or capped products of a row and a state")
    return rule


def exact(value: float) -> float:
    """The value without float32 rounding error: the numbers in a config have few digits."""
    rounded = float(f"{value:.6g}")
    return rounded if math.isclose(rounded, value, rel_tol=TOLERANCE / 10) else value


class OutputStep:
    """A causal class's computation from its last states to the logits of a few tokens with random rows and biases."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int) -> None:
        self.net = shallow(config)
        self.name = type(self.net).__name__
        has_bias = getattr(self.net.get_output_embeddings(), "bias", None) is not None
        self.embedding = nn.Linear(hidden_size, NUM_ROWS, bias=has_bias, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        nn.init.normal_(self.embedding.weight, std=hidden_size**-0.5, generator=generator)
        if has_bias:
            nn.init.normal_(self.embedding.bias, std=SMALL, generator=generator)
        children = self.net.named_children()
        name, trunk = next(((name, each) for name, each in children if isinstance(each, PreTrainedModel)), ("", None))
        if trunk is None:
            raise LogitsError(f"{self.name} has no trunk apart from its output embedding")
        self.trunk = GivenStates(trunk)
        setattr(self.net, name, self.trunk)
        self.net.set_output_embeddings(self.embedding)
        self.net.eval()

    def products(self, states: Tensor) -> Tensor:
        """(states, rows): row . state + bias"""
        with torch.inference_mode():
            products: Tensor = self.embedding(states)
        return products

    def logits(self, states: Tensor) -> Tensor:
        """(states, rows) in float64, by the class's own forward. Raises LogitsError."""
        self.trunk.states = states[None]
        try:
            with foreign_code(), torch.inference_mode():
                logits: Tensor = self.net(input_ids=torch.zeros(1, len(states), dtype=torch.long)).logits
        except ForeignCodeError as error:
            raise LogitsError(
                f"{self.name} computes logits from more than the last states and the output embedding ({error})"
            ) from error
        if logits.shape != (1, len(states), NUM_ROWS):
            raise LogitsError(f"{self.name} gives logits of shape {list(logits.shape)} for {NUM_ROWS} tokens")
        return logits[0].double()


def shallow(config: PreTrainedConfig) -> Any:
    """The causal class on `meta`, with one layer if its config allows it: the layers are unused but take time to build.

    A model for images too may have no causal class for its text model; then this is the class of the whole model.
    """
    text = config.get_text_config()
    attempts: list[tuple[Any, Callable[[], PreTrainedConfig]]] = [
        (AutoModelForCausalLM, lambda: with_layers(text, 1)),
        (AutoModelForCausalLM, lambda: text),
    ]
    if text is not config:
        attempts.append((AutoModelForImageTextToText, lambda: config))
    for auto, given in attempts:
        try:
            with foreign_code(), torch.device("meta"):
                net: Any = auto.from_config(given())
        except ForeignCodeError as error:
            problem = error
        else:
            return net
    raise LogitsError(f"transformers has no causal language model for it ({problem})") from problem


def with_layers(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    fewer: Any = copy.deepcopy(config)
    fewer.num_hidden_layers = num_layers
    if getattr(fewer, "layer_types", None):
        fewer.layer_types = fewer.layer_types[:num_layers]
    return fewer  # type: ignore[no-any-return]
