"""Models of any names on a cluster, from an application's arguments and from REWARD_MODELS."""

import json
from pathlib import Path

import pytest

from app.ray_serve.ingress import Ingress
from app.ray_serve.settings import RaySettings
from tests.api.asking import TEA, ask, assert_error
from tests.conftest import Serve
from tests.models import make_model

NAMES = ["safety", "maths", "style"]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, object]:
    made = {name: str(make_model(tmp_path / name, seed=seed)) for seed, name in enumerate(NAMES, start=3)}
    return made | {"style": {"source": made["style"], "device": "cpu"}}


@pytest.mark.parametrize("form", ["an object", "JSON"])
def test_a_replica_serves_the_models_of_the_arguments(serve: Serve, models: dict[str, object], form: str) -> None:
    given = {"models": models if form == "an object" else json.dumps(models)}
    with serve(**given, safety_model=None, helpfulness_model=None) as client:
        (result,) = ask(client, "/score", {"items": [TEA]})["results"]
        assert list(result["scores"]) == NAMES
        assert len({entry["score"] for entry in result["scores"].values()}) == len(NAMES)
        assert list(client.get("/info").json()["models"]) == NAMES
        (answer,) = ask(
            client,
            "/ppo-reward",
            {"items": [TEA], "combine": {"mode": "weighted", "weights": {"maths": 2.0}}, "whiten": {"mode": "none"}},
        )["results"]
        assert answer["reward"] == pytest.approx(2 * result["scores"]["maths"]["score"], rel=1e-12)
        wrong = client.post("/score", json={"items": [TEA], "models": ["poetry"]})
        assert_error(wrong, 422, "invalid_input", says="models[0] needs the poetry model")


def test_application_and_ingress_take_the_models_of_the_environment(
    models: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_MODELS", json.dumps(models))
    assert list(RaySettings.of({}).model_names) == NAMES
    assert list(Ingress(None, {}).settings.model_names) == NAMES  # type: ignore[arg-type]  # it asks no engine here
