"""The controls of the PPO reward tab, and the request's options that they stand for."""

from collections.abc import Sequence
from typing import Any, get_args

import gradio as gr
from gradio.components import Component

from app.errors import InvalidInputError
from app.rewards.kl import Estimator
from app.ui.parts import UIContext

MAX_BETA = 0.5
"""The end of the slider. The field takes any beta of 0 or more."""
Choice = tuple[str, str]
RULES: list[Choice] = [
    ("Llama 2", "llama2"),
    ("weighted", "weighted"),
    ("GDPO", "gdpo"),
    ("Lagrangian", "lagrangian"),
    ("worst", "worst"),
]
"""Labels and names. GDPO is the weighted sum of whitened scores."""
USED_BY = ({"llama2"}, {"weighted", "gdpo"}, {"lagrangian"})
"""The rules that use the threshold, the weight, and lambda; elsewhere they are not shown."""


def options_of(
    beta: float, rule: str, threshold: float, safety_weight: float, multiplier: float, mode: str, estimator: str
) -> dict[str, Any]:
    """The request's options from the controls' values; `safety_weight` is in [0, 1], and the helpfulness weight is 1 - safety_weight."""
    weights = {"safety": safety_weight, "helpfulness": round(1 - safety_weight, 9)}
    combine: dict[str, dict[str, Any]] = {
        "llama2": {"mode": "llama2"},
        "weighted": {"mode": "weighted", "weights": weights, "whiten_each": False},
        "gdpo": {"mode": "weighted", "weights": weights, "whiten_each": True},
        "lagrangian": {"mode": "lagrangian", "lambda": multiplier},
        "worst": {"mode": "worst"},
    }
    return {
        "beta": beta,
        "combine": combine[rule],
        **({"safety_threshold": threshold} if rule == "llama2" else {}),
        "whiten": {"mode": mode},
        "kl": {"estimator": estimator},
        "token_rewards": True,
    }


def options_from(knobs: Sequence[Any]) -> dict[str, Any]:
    """The request's options from the controls' values; raises InvalidInputError where beta is missing."""
    beta, *rest = knobs
    if beta is None:
        raise InvalidInputError("beta is empty; enter a number, 0 or more.")
    return options_of(beta, *rest)


def build_knobs(context: UIContext) -> dict[str, Component]:
    """The controls by name, in the order in which `options_from` takes their values; call it inside their column.

    beta is a field without an upper bound; its slider covers the usual values and follows it.
    """
    with gr.Group(elem_id="ppo-sliders"):
        beta = gr.Number(
            value=context.beta, step=0.005, label="beta", info="Weight of the KL penalty.", elem_id="ppo-beta"
        )
        slider = gr.Slider(
            0,
            MAX_BETA,
            value=context.beta,
            step=0.005,
            label="beta, up to 0.5",
            show_label=False,
            buttons=[],
            elem_id="ppo-beta-slider",
        )
        threshold = gr.Slider(
            0.01,
            0.99,
            value=context.threshold,
            step=0.01,
            label="Safety threshold",
            info="Veto below it.",
            elem_id="ppo-threshold",
        )
        weight = gr.Slider(
            0,
            1,
            value=0.3,
            step=0.05,
            label="Safety weight",
            info="Helpfulness has the rest.",
            visible=False,
            elem_id="ppo-weight",
        )
        multiplier = gr.Slider(
            0,
            10,
            value=1.2,
            step=0.1,
            label="lambda",
            info="Weight of the cost.",
            visible=False,
            elem_id="ppo-lambda",
        )
    rule = gr.Radio(RULES, value="llama2", label="Combine the two scores", elem_id="ppo-rule")
    mode = gr.Radio(["batch", "group", "none"], value="batch", label="Whiten over", elem_id="ppo-mode")
    estimator = gr.Dropdown(
        list(get_args(Estimator)), value="k1", label="KL estimator", filterable=False, elem_id="ppo-estimator"
    )
    rule.change(
        lambda name: [gr.update(visible=name in rules) for rules in USED_BY],
        rule,
        [threshold, weight, multiplier],
        **context.quiet,
    )
    slider.input(None, slider, beta, js="(value) => value", **context.quiet)
    beta.change(None, beta, slider, js=f"(value) => Math.min(Math.max(value ?? 0, 0), {MAX_BETA})", **context.quiet)
    return {
        "beta": beta,
        "rule": rule,
        "threshold": threshold,
        "weight": weight,
        "multiplier": multiplier,
        "mode": mode,
        "estimator": estimator,
    }
