"""The one place that composes Ray Data: plan stores in parallel, then stream shards to scorers.

``cluster`` connects to Ray and says what it has, ``reaper`` ends what was started with a job;
``planning`` lists stores into plan files, ``since`` knows what earlier runs have listed;
``streaming`` reads (``reading``), scores and publishes what was planned, as ``rows`` of a dataset;
``attempts`` makes retries finite. Nothing is imported here: a worker loads only what it runs.
"""
