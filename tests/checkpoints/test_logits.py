"""What stands between a language model's states and its logits is measured on its class, whatever its config calls it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from app.checkpoints.loading import load_checkpoint
from app.checkpoints.logits import LogitRule, LogitsError, measure_logits
from app.errors import ModelRefusedError
from tests.models import make_language_model

SIZE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 40,
}


class OwnConfig(LlamaConfig):  # type: ignore[no-untyped-call]  # transformers' hook for subclasses has no types
    model_type = "own_logits"


class OwnForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]  # as above
    """Changes its logits under no key of its config at all."""

    config_class = OwnConfig
    change: Callable[[Tensor], Tensor]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = type(self).change(output.logits)
        return output


AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM, exist_ok=True)


def rule_of(change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> LogitRule:
    monkeypatch.setattr(OwnForCausalLM, "change", staticmethod(change), raising=False)
    return measure_logits(OwnConfig(**SIZE), 16)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda x: x, LogitRule()),
        (lambda x: x * 0.3, LogitRule(1 / 0.3)),
        (lambda x: x.float() / 12.5, LogitRule(12.5)),
        (lambda x: 30 * torch.tanh(x / 30), LogitRule(1, 30.0)),
        (lambda x: 7 * torch.tanh(x.float() / 4 / 7), LogitRule(4, 7.0)),
    ],
)
def test_a_factor_and_a_cap_are_taken_over_from_the_class(
    change: Callable[[Tensor], Tensor], rule: LogitRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rule_of(change, monkeypatch)
    assert found.divisor == pytest.approx(rule.divisor, rel=1e-6)
    assert found.softcap == (None if rule.softcap is None else pytest.approx(rule.softcap, rel=1e-6))


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x.log_softmax(-1), lambda x: -x, lambda x: x**3])
def test_logits_that_are_made_otherwise_are_no_head(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LogitsError, match="OwnForCausalLM gives logits"):
        rule_of(change, monkeypatch)


@pytest.mark.parametrize(
    ("family", "scale"),
    [("granite", {"logits_scaling": 3.0}), ("phi", {}), ("gptj", {}), ("opt", {}), ("llama4_text", {})],
)
def test_classes_with_a_bias_or_a_scale_of_their_own_are_measured(family: str, scale: dict[str, float]) -> None:
    config = AutoConfig.for_model(family, vocab_size=64, **scale)
    rule = measure_logits(config, config.hidden_size)
    assert rule == LogitRule(scale.get("logits_scaling", 1.0))


def test_a_language_model_with_layers_behind_its_states_is_refused(tmp_path: Path) -> None:
    make_language_model(tmp_path, "bert", is_decoder=True)
    with pytest.raises(ModelRefusedError, match="BertLMHeadModel computes logits from more than") as refused:
        load_checkpoint(str(tmp_path), device="cpu", declared='{"head": {"token": 7}}')
    assert "\n" not in str(refused.value)
