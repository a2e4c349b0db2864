"""docs/ppo-reward.md names every rule, and its JSON is what the route takes."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from app.api.ppo_schemas import COMBINE_FIELDS, Combine, PPORequest
from app.rewards.kl import Estimator
from app.rewards.selection import selects_safety

TEXT = (Path(__file__).parents[2] / "docs" / "ppo-reward.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"`(\{\"mode\".*?\})`", TEXT)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_rule_in_the_docs_is_one_that_the_route_takes(snippet: str) -> None:
    Combine.model_validate(json.loads(snippet))


def test_the_docs_name_every_rule_estimator_and_option() -> None:
    assert {json.loads(snippet)["mode"] for snippet in SNIPPETS} == set(COMBINE_FIELDS)
    named = set(re.findall(r"`([a-z_0-9]+)`", "\n".join(line for line in TEXT.splitlines() if line.startswith("| `"))))
    assert set(get_args(Estimator)) <= named
    options = set(PPORequest.model_fields) - {"items", "beta", "truncation"}
    assert {name for name in options if name not in TEXT} == set()


def test_the_example_of_a_threshold_on_the_score_is_right() -> None:
    assert "-0.3 (safety) and 0.7 (helpfulness) give -0.3, and 1.3 and 0.4 give 0.4" in TEXT
    assert selects_safety(-0.3, is_safety=False, threshold=0.15, threshold_on="score")
    assert not selects_safety(1.3, is_safety=False, threshold=0.15, threshold_on="score")
