"""The one place that composes Ray Data: plan stores in parallel, then stream shards to scorers.

``cluster`` connects to Ray and says what it has; ``planning`` lists stores into plan files;
``streaming`` reads (``reading``), scores and publishes what was planned, as ``rows`` of a dataset;
``attempts`` makes retries finite. Nothing is imported here: a worker loads only what it runs.
"""
