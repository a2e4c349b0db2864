"""Settings of the Ray Serve application: the service's own (`Settings`), and how many replicas run where.

Each field is an environment variable of the nodes (`REWARD_RAY_MAX_REPLICAS`) or an argument of the application
(`ray_max_replicas`); the argument overrides the variable.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from app.errors import StartError
from app.settings import Settings


class RaySettings(Settings):
    ray_min_replicas: int = Field(default=1, ge=0)
    """Minimum number of engines."""
    ray_max_replicas: int = Field(default=1, ge=1)
    """Maximum number of engines. If it is above the minimum, Ray scales by the requests in flight."""
    ray_target_ongoing_requests: float = Field(default=64, gt=0)
    """Requests in flight per engine that autoscaling aims at: several batches, so the device is never idle."""
    ray_max_ongoing_requests: int = Field(default=256, ge=1)
    """Maximum requests in flight per engine. Further requests for the same prompt go to another engine."""
    ray_upscale_seconds: float = Field(default=15, ge=0)
    """Seconds of high load before an engine is added."""
    ray_downscale_seconds: float = Field(default=300, ge=0)
    """Seconds of low load before an engine is removed."""
    ray_num_cpus: float = Field(default=1, ge=0)
    """CPU cores per engine. A forward pass on CPU uses at most as many threads, unless num_threads is set."""
    ray_num_gpus: float = Field(default=0, ge=0)
    """GPUs per engine; 0.5 puts two engines on one GPU."""
    ray_ingress_replicas: int = Field(default=1, ge=1)
    """Number of processes that receive requests and choose an engine."""
    ray_ingress_cpus: float = Field(default=1, ge=0)
    """CPU cores per ingress process."""
    ray_route_by_prompt: bool = True
    """Send all requests for a prompt to one engine, which computes the prompt once. If false, to the less loaded engine."""
    ray_health_check_seconds: float = Field(default=5, gt=0)
    """Seconds between health checks; an engine is replaced after three failures."""

    @property
    def is_loopback(self) -> bool:
        """Always False: Ray chooses the address to listen on."""
        return False

    @model_validator(mode="after")
    def bounds_in_order(self) -> Self:
        if self.ray_max_replicas < self.ray_min_replicas:
            raise ValueError(
                f"ray_max_replicas {self.ray_max_replicas} is below ray_min_replicas {self.ray_min_replicas}; raise it"
            )
        return self

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Self:
        """The settings with these arguments; raises StartError for an argument that is not a setting."""
        unknown = sorted(args.keys() - cls.model_fields.keys())
        if unknown:
            raise StartError(f"{', '.join(unknown)}: no such setting; docs/scaling.md lists the settings")
        return cls(**args)
