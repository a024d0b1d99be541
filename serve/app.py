"""The application as Ray Serve deploys it: which deployments there are and how they scale.

``serve deploy serve/config.yaml`` calls :func:`build` with the ``args`` of that file.
"""

from typing import Any, Final

from ray import serve
from ray.serve import Application

from serve.archive_app import archive_keeper
from serve.endpoint import Endpoint
from serve.settings import Scale, ServeSettings

ENDPOINT: Final = "Endpoint"

ONGOING: Final = 4096
"""Requests that a replica may have open. Far more than are let wait for the model: what is too much
the endpoint turns away itself, at once and with a time to come again."""

LOAD_OF_A_REPLICA: Final = 24.0
"""Open requests a replica at which there should be another: most of a batch, so that batches stay
full before the load is spread."""


def build(settings: ServeSettings) -> Application:
    """Return the application.

    Args:
        settings: what the operator decided.
    """
    endpoint = serve.deployment(
        name=ENDPOINT,
        **scaling(settings.classify, load=LOAD_OF_A_REPLICA),
        max_ongoing_requests=ONGOING,
        max_surge_percent=100,  # a successor is warm before a replica goes, even the only one
        health_check_period_s=5,
        graceful_shutdown_timeout_s=60,
    )(Endpoint)
    return endpoint.bind(settings.model_dump(mode="json"), archive_keeper(settings))


def scaling(scale: Scale, *, load: float) -> dict[str, Any]:
    """Return the options by which a deployment follows its load.

    Args:
        scale: the bounds.
        load: open requests that one replica should have.
    """
    return {
        "autoscaling_config": {
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": load,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 5.0,
        },
        "ray_actor_options": {"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
    }
