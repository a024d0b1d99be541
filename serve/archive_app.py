"""The two deployments of archive runs: one keeper, and scorers that come and go with the work."""

from typing import Final

from ray import serve
from ray.serve import Application

from serve.archive_keeper import ArchiveKeeper
from serve.archive_scorer import SHARDS_AT_ONCE, ArchiveScorer
from serve.settings import ServeSettings

KEEPER: Final = "ArchiveKeeper"
SCORER: Final = "ArchiveScorer"

LOAD_OF_A_REPLICA: Final = 1.0
"""Shards on their way a replica at which there should be another: two shards want two replicas."""

FIRST_REPLICAS: Final = 2.0
"""Replicas that are started at once where there is none. With 1, Ray Serve 2.60 starts a single one
and looks again when it runs: an archive of some seconds was over before the second had loaded."""

LOGGING: Final = {"encoding": "JSON", "enable_access_log": False}


def archive_keeper(settings: ServeSettings) -> Application:
    """Return the keeper, bound to its scorers; the endpoint takes it as an argument.

    Args:
        settings: what the operator decided.
    """
    scale = settings.archives
    scorer = serve.deployment(
        name=SCORER,
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "initial_replicas": scale.min_replicas,
            "target_ongoing_requests": LOAD_OF_A_REPLICA,
            "upscaling_factor": FIRST_REPLICAS,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 5.0,
        },
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
        max_ongoing_requests=SHARDS_AT_ONCE,
        # Its threads have the lowest priority: under load of single cells it may answer late.
        health_check_period_s=10,
        health_check_timeout_s=120,
        graceful_shutdown_timeout_s=60,
        logging_config=LOGGING,
    )(ArchiveScorer)
    keeper = serve.deployment(
        name=KEEPER,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=64,
        health_check_period_s=5,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=30,
        logging_config=LOGGING,
    )(ArchiveKeeper)
    device = "cuda" if scale.num_gpus else "cpu"
    scorers = scorer.bind(settings.bundle, device, owns_process=True)
    return keeper.bind(settings.model_dump(mode="json"), scorers)
