"""The Kubernetes manifests: valid by Kubernetes' own schemas, and of one mind with the service and its image."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.observability.metrics import Metrics
from app.service import Service
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
VERSIONS = ["1.30", "1.33", "1.37"]
"""The oldest has preStop's sleep, on by default since."""


def documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document]


OBJECTS = {document["kind"]: document for file in MANIFESTS for document in documents(file)}
POD = OBJECTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {entry["name"]: entry.get("value") for entry in CONTAINER["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_kubernetes_own_schema_takes_each_object(kind: str, version: str) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(OBJECTS[kind], version, strict=True)


def test_the_process_ends_by_itself_before_it_is_killed() -> None:
    grace = float(ENVIRONMENT["REWARD_GRACE_SECONDS"])
    assert POD["terminationGracePeriodSeconds"] > grace + CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_nothing_of_the_pod_is_root_or_written_to_but_tmp() -> None:
    assert (POD["securityContext"]["runAsNonRoot"], POD["securityContext"]["runAsUser"]) == (True, 10001)
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in CONTAINER["volumeMounts"]] == ["/tmp"]  # noqa: S108 - the image's only one


def test_the_service_knows_every_setting_of_the_pod_and_the_port_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)  # a node that has what the pod requests
    values = {name.removeprefix("REWARD_").lower(): value for name, value in ENVIRONMENT.items()}
    assert values.keys() <= Settings.model_fields.keys()
    settings = Settings(_env_file=None, **{name: value for name, value in values.items() if value is not None})
    assert CONTAINER["ports"][0]["containerPort"] == settings.port


def test_the_probes_are_routes_of_the_service() -> None:
    probes = {name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} == {CONTAINER["ports"][0]["name"]}
    paths = [probes[name]["path"] for name in probes]
    assert paths == ["/ready", "/ready", "/health"]


def test_every_selector_finds_the_pod() -> None:
    labels = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["Service"]["spec"]["selector"] == labels
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert (
        OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        == OBJECTS["Deployment"]["metadata"]["name"]
    )


def test_what_the_autoscaler_asks_for_is_a_metric_of_the_service_and_a_rule_gives_it() -> None:
    (metric,) = OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    service = Service(Settings(_env_file=None))
    page, _ = Metrics(service, safety_threshold=0.15).exposition("text/plain")
    assert f"# TYPE {name} gauge" in page.decode()
    (values,) = documents(ROOT / "deploy" / "kubernetes" / "prometheus-adapter" / "values.yaml")
    (rule,) = values["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert f"{name}{{<<.LabelMatchers>>}}" in rule["metricsQuery"]
