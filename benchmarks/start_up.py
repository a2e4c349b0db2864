"""Measures the time from the service's command until it is ready, and its memory then."""

from pathlib import Path

from benchmarks.results import StartUp
from benchmarks.servers.process import free_port, running


def measure_start_ups(command: tuple[str, ...], repeats: int, log_dir: Path) -> list[StartUp]:
    """Start the service `repeats` times with its default models; the first start may find a cold disk cache."""
    return [_measure_once(command, f"start {repeat + 1}", log_dir) for repeat in range(repeats)]


def _measure_once(command: tuple[str, ...], label: str, log_dir: Path) -> StartUp:
    port = free_port()
    environment = {"REWARD_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    with running(
        "start-up", command, port=port, ready_path="/ready", environment=environment, log_dir=log_dir
    ) as process:
        return StartUp(label, "service", process.start_seconds, process.resident_bytes())
