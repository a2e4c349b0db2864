"""What `serve run` and `serve deploy` are given: the import path, the file, the settings."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray._common.utils import import_attr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import BuiltApplication, build_app
from ray.serve.schema import ServeDeploySchema

from app.errors import StartError
from app.ray_serve import app
from app.ray_serve.settings import RaySettings

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "ray" / "serve.yaml"


def built(args: dict[str, Any]) -> BuiltApplication:
    return build_app(call_user_app_builder_with_args_if_necessary(app, args), name="x")


def config_of(args: dict[str, Any], deployment: str = "engine") -> Any:
    return next(each for each in built(args).deployments if each.name == deployment)._deployment_config


def test_rays_own_schema_takes_the_file_and_its_application_is_built() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    (application,) = config.applications
    assert import_attr(application.import_path) is app
    assert {each.name for each in built(application.args).deployments} == {"engine", "ingress"}
    assert application.route_prefix == "/"


def test_one_number_is_fixed_and_two_are_bounds_for_the_requests_in_flight() -> None:
    fixed = config_of({"ray_min_replicas": 3, "ray_max_replicas": 3})
    assert (fixed.num_replicas, fixed.autoscaling_config) == (3, None)
    bounds = config_of(
        {"ray_min_replicas": 1, "ray_max_replicas": 5, "ray_target_ongoing_requests": 7}
    ).autoscaling_config
    assert (bounds.min_replicas, bounds.max_replicas, bounds.target_ongoing_requests) == (1, 5, 7)


def test_an_engine_has_the_devices_and_the_grace_period_that_the_settings_give() -> None:
    args = {"ray_num_cpus": 2, "ray_num_gpus": 0.5, "grace_seconds": 17}
    (engine,) = (each for each in built(args).deployments if each.name == "engine")
    assert engine.ray_actor_options == {"num_cpus": 2, "num_gpus": 0.5}
    assert config_of(args).graceful_shutdown_timeout_s == 17
    assert config_of(args, "ingress").graceful_shutdown_timeout_s == 17


def test_requests_are_routed_by_prompt_unless_it_is_switched_off() -> None:
    assert "ConsistentHashRouter" in config_of({}).request_router_config.request_router_class
    by_load = config_of({"ray_route_by_prompt": False}).request_router_config.get_request_router_class()
    assert by_load.__name__ == "PowerOfTwoChoicesRequestRouter"


def test_settings_come_from_the_environment_and_arguments_go_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_RAY_MAX_REPLICAS", "4")
    monkeypatch.setenv("REWARD_MAX_ITEMS", "9")
    assert RaySettings.of({}).ray_max_replicas == 4
    assert (RaySettings.of({"ray_max_replicas": "6"}).ray_max_replicas, RaySettings.of({}).max_items) == (6, 9)


def test_a_misspelt_argument_and_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(StartError, match="ray_max_replica: no such setting"):
        app({"ray_max_replica": 2})
    with pytest.raises(ValidationError, match="ray_max_replicas 2 is below ray_min_replicas 3"):
        app({"ray_max_replicas": 2, "ray_min_replicas": 3})


@pytest.mark.parametrize("name", [name for name in RaySettings.model_fields if name.startswith("ray_")])
def test_every_setting_of_its_own_is_in_the_documents_table_as_its_code_has_it(name: str) -> None:
    field = RaySettings.model_fields[name]
    words = " ".join((field.description or "").split())
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    document = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {default} | {words} |" in document
