"""Blood cells classified at archive scale; ``docs/architecture.md`` has the walk of a record."""
