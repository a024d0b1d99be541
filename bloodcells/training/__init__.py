"""Training: a dataset to a model bundle, on a Ray cluster.

``ingest`` decodes images once, ``sampling`` plans each epoch, ``feed`` augments the batches of a
rank, ``loop`` and ``stage_run`` are what a rank does with them, ``fit`` starts the ranks,
``shipping`` makes a bundle of what they learnt. Nothing is imported here: a task that makes batches
needs no model library, and starts the sooner.
"""
