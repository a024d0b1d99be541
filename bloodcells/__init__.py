"""Blood cells classified at archive scale. See ``docs/architecture.md`` for the walk of a record."""
