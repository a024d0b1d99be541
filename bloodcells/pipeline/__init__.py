"""The one place that composes Ray Data: plan stores in parallel, then stream shards to scorers.

``planning`` lists stores into plan files, ``streaming`` reads, decodes, scores and publishes what
was planned, ``cluster`` connects to Ray and says what it has.
"""

from bloodcells.pipeline.cluster import cluster_device, cluster_scorers, start_ray
from bloodcells.pipeline.planning import PlanCounts, chain_of_runs, plan_stores
from bloodcells.pipeline.streaming import ScorerPool, score_planned

__all__ = [
    "PlanCounts",
    "ScorerPool",
    "chain_of_runs",
    "cluster_device",
    "cluster_scorers",
    "plan_stores",
    "score_planned",
    "start_ray",
]
