"""The promises of deploy/ and of the monitoring profile that need no Prometheus to check; the rest is in monitoring/."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.test_metrics import NAMES, metrics
from tests.test_container_files import compose

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
SERVICES = ("prometheus", "grafana")
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/reward-service.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


def read(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"][request.param]
    return found


def test_monitoring_starts_only_when_asked(service: dict[str, Any]) -> None:
    assert service["profiles"] == ["monitoring"]


def test_monitoring_is_published_on_the_loopback_alone(service: dict[str, Any]) -> None:
    assert [port.startswith("127.0.0.1:") for port in service["ports"]] == [True]


def test_monitoring_writes_nothing_but_its_own_volume(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    for volume in service["volumes"]:
        source, target, *mode = volume.split(":")
        if source.startswith("."):
            assert mode == ["ro"], volume
            assert (ROOT / source).exists(), volume
        else:
            assert source in compose()["volumes"]
            assert target in {"/prometheus", "/var/lib/grafana"}


def test_images_are_pinned(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])


def test_prometheus_gets_every_file_that_its_configuration_names() -> None:
    config, service = read("prometheus/prometheus.yml"), compose()["services"]["prometheus"]
    mounted = {volume.split(":")[1] for volume in service["volumes"]} | {each["target"] for each in service["configs"]}
    (job,) = config["scrape_configs"]
    for name in (*config["rule_files"], job["authorization"]["credentials_file"]):
        assert f"/etc/prometheus/{name}" in mounted
    assert all(each["source"] in compose()["configs"] for each in service["configs"])


def test_prometheus_scrapes_the_service_that_compose_starts() -> None:
    (job,) = read("prometheus/prometheus.yml")["scrape_configs"]
    ((host, _, port),) = [target.partition(":") for target in job["static_configs"][0]["targets"]]
    assert compose()["services"][host]["environment"]["REWARD_PORT"] == port
    assert "metrics_path" not in job


def test_the_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    (source,) = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    (provider,) = read("grafana/provisioning/dashboards/reward-service.yml")["providers"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in compose()["services"]["grafana"]["volumes"]}
    assert (ROOT / mounted[provider["options"]["path"]] / "reward-service.json").exists()
    assert source["url"] == "http://prometheus:9090"
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["current"]["text"] == source["name"]
    targets = [target for panel in PANELS for target in panel.get("targets", [])]
    assert {target["datasource"]["uid"] for target in targets} == {"${datasource}"}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def queries() -> list[str]:
    rules = read("prometheus/alerts.yml")["groups"][0]["rules"]
    return [rule["expr"] for rule in rules] + [
        target["expr"] for panel in PANELS for target in panel.get("targets", [])
    ]


def test_rules_and_panels_ask_only_for_metrics_that_there_are() -> None:
    histograms = {family.name for family in metrics().registry.collect() if family.type == "histogram"}
    kinds = {f"{name}{kind}" for name in histograms for kind in ("_bucket", "_sum", "_count")}
    known = set(NAMES) | kinds
    asked = {name for query in queries() for name in re.findall(r"\breward_\w+", query)}
    assert asked <= known
    assert len(asked) > 20


def test_every_metric_is_shown_or_alerted_on() -> None:
    asked = " ".join(queries())
    assert [name for name in NAMES if name not in asked] == ["reward_build_info"]  # which the variables are made from


def test_every_query_selects_the_job_and_the_instances() -> None:
    for panel in PANELS:
        for target in panel.get("targets", []):
            expression = target["expr"]
            assert expression.count("{job=") == expression.count('instance=~"$instance"') > 0, panel["title"]


def test_every_alert_says_how_bad_it_is_and_what_to_do_and_is_in_the_manual() -> None:
    manual = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    for rule in read("prometheus/alerts.yml")["groups"][0]["rules"]:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"`{rule['alert']}`" in manual


def test_every_metric_is_in_the_manual() -> None:
    manual = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}" not in manual] == []
