"""The same service as a Ray Serve application (extra `ray`): `serve run app.ray_serve:app ray_max_replicas=4`.

There are two deployments. A replica of `engine` runs the whole app with its models on the devices that Ray gives it. A
replica of `ingress` receives HTTP requests, reads the prompt of each, and forwards it to the engine replica that has this
prompt in its cache. The app itself writes every response, so the HTTP contract is the same as without Ray.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from app.ray_serve.settings import RaySettings

BY_PROMPT = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
DRAIN_POLL_SECONDS = 0.5
"""Seconds between a stopping replica's checks whether its requests are finished."""

QUIET = {"enable_access_log": False}
"""The app has its own access log."""


def app(args: dict[str, Any]) -> Application:
    """The application. `args` are settings that override the environment's. Raises StartError or pydantic's ValidationError."""
    from app.ray_serve.replica import Replica  # imports torch, which the ingress does not need

    return application(args, Replica)


def application(args: dict[str, Any], replica: type) -> Application:
    """The application with a subclass of `Replica`."""
    from app.ray_serve.ingress import Ingress

    settings = RaySettings.of(args)
    engine = serve.deployment(
        replica,
        name="engine",
        ray_actor_options={"num_cpus": settings.ray_num_cpus, "num_gpus": settings.ray_num_gpus},
        max_ongoing_requests=settings.ray_max_ongoing_requests,
        max_queued_requests=settings.max_waiting_requests,
        health_check_period_s=settings.ray_health_check_seconds,
        graceful_shutdown_timeout_s=settings.grace_seconds,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_SECONDS,
        **({"request_router_config": {"request_router_class": BY_PROMPT}} if settings.ray_route_by_prompt else {}),
        logging_config=QUIET,
        **num_replicas(settings),
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        num_replicas=settings.ray_ingress_replicas,
        ray_actor_options={"num_cpus": settings.ray_ingress_cpus},
        max_ongoing_requests=settings.max_waiting_requests,
        graceful_shutdown_timeout_s=settings.grace_seconds,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_SECONDS,
        logging_config=QUIET,
    )
    return ingress.bind(engine.bind(args), args)


def num_replicas(settings: RaySettings) -> dict[str, Any]:
    """A fixed number of replicas, or bounds within which Ray scales by the requests in flight."""
    if settings.ray_min_replicas == settings.ray_max_replicas:
        return {"num_replicas": settings.ray_max_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": settings.ray_min_replicas,
            "max_replicas": settings.ray_max_replicas,
            "target_ongoing_requests": settings.ray_target_ongoing_requests,
            "upscale_delay_s": settings.ray_upscale_seconds,
            "downscale_delay_s": settings.ray_downscale_seconds,
        }
    }
