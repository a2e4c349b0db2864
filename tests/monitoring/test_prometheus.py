"""Every rule and every query of the dashboard, evaluated by a real Prometheus over real traffic."""

import math
import subprocess
from typing import Any

import pytest

from app.observability.metrics import SCORES
from tests.monitoring.conftest import DEPLOY, NUM_ROUNDS, Asked, Prometheus, dashboard, program

VARIABLES = {"$__rate_interval": "10m", "$job": "reward-service", "$instance": ".+"}
"""What Grafana puts in; the interval holds the whole test, so that a rate is the whole test's too."""
INTERVAL_SECONDS = 600


def expressions() -> list[tuple[str, str]]:
    """Title and query of everything that the dashboard draws or asks for."""
    content = dashboard()
    found = [(panel["title"], target["expr"]) for panel in content["panels"] for target in panel.get("targets", [])]
    found += [("annotation", each["expr"]) for each in content["annotations"]["list"] if "expr" in each]
    return [(title, filled(expression)) for title, expression in found]


def filled(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def drawn(title: str, number: int = 0) -> str:
    return [expression for other, expression in expressions() if other == title][number]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "--syntax-only", "prometheus/prometheus.yml"],
        ["check", "rules", "prometheus/alerts.yml"],
        ["test", "rules", "prometheus/alerts_test.yml"],
    ],
)
def test_promtool_accepts_the_files(arguments: list[str]) -> None:
    done = subprocess.run(  # noqa: S603 - Debian's own
        [program("promtool"), *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_odd_in_the_metrics(asked: Asked, service: Any) -> None:  # noqa: ARG001 - traffic first
    done = subprocess.run(  # noqa: S603
        [program("promtool"), "check", "metrics"],
        input=service.get("/metrics").content,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_every_rule_is_evaluated_and_none_fires_over_healthy_traffic(asked: Asked, prometheus: Prometheus) -> None:  # noqa: ARG001
    (group,) = prometheus.get("rules")["groups"]
    rules = {rule["name"]: rule for rule in group["rules"]}
    assert len(rules) == 9
    assert {name: (rule["health"], rule.get("lastError")) for name, rule in rules.items()} == dict.fromkeys(
        rules, ("ok", None)
    )
    assert {name: rule["state"] for name, rule in rules.items()} == dict.fromkeys(rules, "inactive")


@pytest.mark.parametrize("title", sorted({title for title, _ in expressions()} - {"annotation"}))
def test_every_panel_has_something_to_draw(asked: Asked, prometheus: Prometheus, title: str) -> None:  # noqa: ARG001
    for expression in (expression for other, expression in expressions() if other == title):
        found = prometheus.query(expression)
        assert found, expression
        assert all(math.isfinite(float(sample["value"][1])) for sample in found), found


def test_the_alerts_annotation_is_evaluated(asked: Asked, prometheus: Prometheus) -> None:  # noqa: ARG001
    assert prometheus.query(drawn("annotation")) == []


def test_the_counters_are_what_was_asked(asked: Asked, prometheus: Prometheus) -> None:
    number = prometheus.number
    assert number('reward_requests_total{route="/score", status="200"}') == NUM_ROUNDS
    assert number('reward_requests_total{route="/score", status="422"}') == asked.num_invalid
    assert number('reward_requests_total{route="unmatched", status="404"}') == NUM_ROUNDS
    assert number('reward_scored_sequences_total{model="safety"}') == len(asked.results)
    assert number('reward_truncated_sequences_total{model="safety"}') == NUM_ROUNDS
    assert number('reward_rejected_requests_total{code="invalid_input"}') == asked.num_invalid


def test_the_panels_say_what_happened(asked: Asked, prometheus: Prometheus) -> None:
    """Ratios are exact over the whole test; a rate is that of the scrapes between which it is taken."""
    number = prometheus.number
    assert number(drawn("Ready instances")) == 1
    assert number(drawn("In flight")) == 0
    assert number(drawn("5xx")) == 0
    assert 0 < number(drawn("Busy")) < 1
    answered = number(drawn("Requests / s")) * INTERVAL_SECONDS
    assert 0.7 * 3 * NUM_ROUNDS < answered < 1.1 * 3 * NUM_ROUNDS  # what came before a series' first scrape is not seen
    own = 1 - asked.num_computed_tokens / asked.num_tokens
    assert 1 - number("sum(reward_computed_tokens_total)") / number("sum(reward_tokens_total)") == pytest.approx(own)
    assert number(drawn("Sharing")) == pytest.approx(own, abs=0.02)
    below = sum(result["scores"]["safety"]["probability"] < 0.15 for result in asked.results) / len(asked.results)
    assert number(drawn("Below safety threshold")) == pytest.approx(below, abs=0.02)
    truncated = {
        each["metric"]["model"]: float(each["value"][1]) for each in prometheus.query(drawn("Truncated sequences"))
    }
    assert truncated == {name: pytest.approx(1 / 4, abs=0.02) for name in ("safety", "helpfulness")}
    latency = number(drawn("p99 latency"))
    assert 0 < latency < 60


def test_the_score_quantiles_lie_in_the_bucket_of_the_true_ones(asked: Asked, prometheus: Prometheus) -> None:
    for model in ("safety", "helpfulness"):
        scores = sorted(result["scores"][model]["score"] for result in asked.results)
        median = scores[len(scores) // 2]
        by_model = {
            sample["metric"]["model"]: float(sample["value"][1]) for sample in prometheus.query(drawn("Scores", 1))
        }
        bounds = [-math.inf, *SCORES, math.inf]
        place = next(i for i, bound in enumerate(bounds) if median <= bound)
        assert bounds[max(place - 2, 0)] <= by_model[model] <= bounds[min(place + 1, len(bounds) - 1)]


def test_the_scrape_needs_the_key(service: Any, prometheus: Prometheus) -> None:
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    del service.headers["authorization"]
    try:
        assert service.get("/metrics").status_code == 401
    finally:
        service.headers["authorization"] = "Bearer scrape-key-of-the-test"
