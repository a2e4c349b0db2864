"""The promises of Dockerfile, docker-compose.yml and .dockerignore that need no container engine to check."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("reward-service", "reward-service-gpu")


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, a line each, without the comments."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    joined = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    service: dict[str, Any] = compose()["services"][request.param]
    return service


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return content


def last_stage(dockerfile: list[tuple[str, str]]) -> list[tuple[str, str]]:
    start = max(index for index, (name, _) in enumerate(dockerfile) if name == "FROM")
    return dockerfile[start:]


def arguments(dockerfile: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in dockerfile if instruction == name]


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match, duration
    return 60 * int(match[1] or 0) + int(match[2] or 0)


def test_every_install_keeps_to_the_constraints(dockerfile: list[tuple[str, str]]) -> None:
    installs = [
        command
        for rest in arguments(dockerfile, "RUN")
        for command in re.findall(r"(?:pip|uv pip) (?:--\S+ \S+ )?install[^;|&]*", rest)
        if "uv==" not in command  # the installer itself stays behind in the build stage
    ]
    assert len(installs) >= 3
    assert all("--constraint constraints.txt" in command for command in installs)


def test_no_extra_of_the_project_is_installed(dockerfile: list[tuple[str, str]]) -> None:
    assert any(rest.endswith("--no-deps .") for rest in arguments(dockerfile, "RUN"))
    assert not any(".[" in rest for rest in arguments(dockerfile, "RUN"))


def requirements(dockerfile: list[tuple[str, str]], extras: str) -> subprocess.CompletedProcess[str]:
    """Runs the program of the build that writes requirements.txt."""
    (run,) = (rest for rest in arguments(dockerfile, "RUN") if "> requirements.txt" in rest)
    (program,) = re.findall(r"python -c '([^']*)' > requirements.txt", run)
    command = [sys.executable, "-c", program]
    environment = {"EXTRAS": extras}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603


def test_a_build_argument_adds_extras(dockerfile: list[tuple[str, str]], project: dict[str, Any]) -> None:
    assert "EXTRAS=" in arguments(dockerfile, "ARG")
    own = project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"]
    assert requirements(dockerfile, "").stdout.splitlines() == own
    assert requirements(dockerfile, "ui, otel").stdout.splitlines() == [*own, *extras["ui"], *extras["otel"]]
    refused = requirements(dockerfile, "uii")
    assert refused.returncode == 1
    assert "EXTRAS has uii; there are" in refused.stderr


def test_torch_is_pinned_where_the_build_looks_for_its_version() -> None:
    pins = re.findall(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(pins) == 1


def test_the_image_runs_the_console_script(dockerfile: list[tuple[str, str]], project: dict[str, Any]) -> None:
    *_, entrypoint, command = last_stage(dockerfile)
    assert entrypoint[0] == "ENTRYPOINT"
    assert json.loads(entrypoint[1]) == ["reward-service"]
    assert "reward-service" in project["project"]["scripts"]
    assert (command[0], json.loads(command[1])) == ("CMD", ["serve"])
    assert ("STOPSIGNAL", "SIGTERM") in last_stage(dockerfile)


def test_the_image_does_not_run_as_root(dockerfile: list[tuple[str, str]]) -> None:
    (user,) = arguments(last_stage(dockerfile), "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_every_package_of_the_distribution_reaches_the_build(
    dockerfile: list[tuple[str, str]], project: dict[str, Any]
) -> None:
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {source for rest in arguments(dockerfile, "COPY") for source in rest.split()[:-1]}
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert set(packages) <= copied
    assert {f"!{package}" for package in packages} <= set(let_through)


def test_the_build_context_holds_only_what_is_named() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    assert not any(pattern.startswith("!.") for pattern in patterns)


def test_the_label_has_the_version_of_the_project(dockerfile: list[tuple[str, str]], project: dict[str, Any]) -> None:
    assert f"VERSION={project['project']['version']}" in arguments(dockerfile, "ARG")


@pytest.mark.parametrize("name", ["Dockerfile", "docker-compose.yml"])
def test_every_reward_variable_that_is_mentioned_is_a_setting(name: str) -> None:
    mentioned = set(re.findall(r"REWARD_[A-Z_]+", (ROOT / name).read_text(encoding="utf-8")))
    assert mentioned
    assert {variable.removeprefix("REWARD_").lower() for variable in mentioned} <= set(Settings.model_fields)


def test_compose_waits_longer_than_the_service_drains(service: dict[str, Any]) -> None:
    assert seconds(service["stop_grace_period"]) > Settings.model_fields["grace_seconds"].default


def test_compose_publishes_on_the_loopback_alone(service: dict[str, Any]) -> None:
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def enabled(*profiles: str) -> set[str]:
    """The services that `docker compose up` starts with these profiles: those with one of them, and those without a list.

    Where no profile is named, compose takes "" for one: it splits an empty COMPOSE_PROFILES at its commas.
    """
    active = {*(profiles or ("",))}
    services = compose()["services"]
    return {name for name, service in services.items() if {*service.get("profiles", active)} & active}


@pytest.mark.parametrize(("profile", "name"), [("cpu", "reward-service"), ("gpu", "reward-service-gpu")])
def test_a_profile_starts_one_service_on_port_8000(profile: str, name: str) -> None:
    assert enabled(profile) == {name}
    assert compose()["services"][name]["ports"] == ["127.0.0.1:${PORT:-8000}:8000"]
    assert enabled(profile, "monitoring") == {name, "prometheus", "grafana"}


def test_without_a_profile_the_cpu_service_starts_alone() -> None:
    assert enabled() == enabled("cpu")


def test_prometheus_finds_the_service_of_either_profile() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    services = compose()["services"]
    assert port == services["reward-service"]["environment"]["REWARD_PORT"]
    assert host == "reward-service"
    assert services["reward-service-gpu"]["networks"]["default"]["aliases"] == [host]


def test_compose_leaves_the_service_nothing_to_write_but_tmp(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]  # noqa: S108 - a path in the container
    assert all(volume["read_only"] is True for volume in service["volumes"])


def test_caches_are_in_the_one_place_that_can_be_written(dockerfile: list[tuple[str, str]]) -> None:
    (env,) = arguments(last_stage(dockerfile), "ENV")
    values = dict(word.split("=", 1) for word in env.split())
    for name in ("HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert Path(values[name]).parts[:2] == ("/", "tmp")


def test_compose_takes_every_privilege_away(service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service  # the image's own


def test_compose_passes_api_keys_on_only_where_they_are_set(
    service: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service["environment"]["REWARD_API_KEYS"] is None
    monkeypatch.setenv("REWARD_API_KEYS", "")  # what `${REWARD_API_KEYS:-}` would give
    with pytest.raises(ValueError, match="empty"):
        Settings()


def test_compose_checks_health_as_the_image_does(service: dict[str, Any], dockerfile: list[tuple[str, str]]) -> None:
    (check,) = arguments(last_stage(dockerfile), "HEALTHCHECK")
    options, _, command = check.partition("CMD ")
    assert service["healthcheck"]["test"] == ["CMD", *json.loads(command)]
    for name in ("interval", "timeout", "start_period"):
        assert f"--{name.replace('_', '-')}={service['healthcheck'][name]}" in options
    compile(json.loads(command)[-1], "healthcheck", "exec")


def test_models_are_mounted_where_the_image_looks_for_them(
    service: dict[str, Any], dockerfile: list[tuple[str, str]]
) -> None:
    (workdir,) = arguments(last_stage(dockerfile), "WORKDIR")
    (volume,) = service["volumes"]
    assert volume["target"] == f"{workdir}/models"
    assert service["build"]["args"]["MODELS"] == "none"


def test_compose_gives_the_gpu_variant_a_gpu() -> None:
    cpu, gpu = (compose()["services"][name] for name in SERVICES)
    assert (cpu["build"]["args"]["VARIANT"], gpu["build"]["args"]["VARIANT"]) == ("cpu", "cuda")
    assert "deploy" not in cpu
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    # compiled kernels are loaded from there
    assert gpu["tmpfs"] == ["/tmp:exec"]  # noqa: S108 - a path in the container
