"""Side-by-side measurements: never tests, never imported by the library or its jobs."""
