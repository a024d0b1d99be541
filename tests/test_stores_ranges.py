from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloodcells.stores import ranges

DATA = os.urandom(3_000_000)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wanted=st.lists(st.tuples(st.integers(0, len(DATA) + 10), st.integers(0, 600_000)), max_size=9)
)
def test_every_range_comes_as_it_lies_in_the_file(
    wanted: list[tuple[int, int]], tmp_path: Path
) -> None:
    path = tmp_path / "file.bin"
    if not path.exists():
        path.write_bytes(DATA)
    read = [bytes(data) for data in ranges.read_ranges(str(path), wanted)]
    assert read == [DATA[offset : offset + length] for offset, length in wanted]


def test_neighbours_are_read_together() -> None:
    wanted = [(number * 15_000, 14_000) for number in range(1000)]
    blocks = list(ranges._blocks(wanted))
    assert [found for block in blocks for found in block] == wanted
    assert len(blocks) == 2
    far = [(0, 10), (10 + ranges.LARGEST_GAP, 10), (21 + 2 * ranges.LARGEST_GAP, 10)]
    assert [len(block) for block in ranges._blocks(far)] == [2, 1]
    large = [(0, 10), (10, 2 * ranges.LARGEST_READ), (20 + 2 * ranges.LARGEST_READ, 10)]
    assert [len(block) for block in ranges._blocks(large)] == [1, 1, 1]
    assert list(ranges._blocks([])) == []
