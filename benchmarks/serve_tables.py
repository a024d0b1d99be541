"""From the loads of all rounds to ratios, targets and the tables that are printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.answers import why_void
from benchmarks.contenders import NUM_CORES
from benchmarks.tables import Spread, aligned

Round = Mapping[str, Any]
"""What came of one round. Of servers: by name and concurrency the load, by ``limit`` and way what
the bare model did. Of archives: see ``serve_archives``."""

SLACK_MS: Final = 10.0
SINGLE: Final = 1.5
REFUSED_MS: Final = 100.0
BATCH: Final = 32


@dataclass(frozen=True, kw_only=True)
class Target:
    """A figure that the project promises.

    Attributes:
        what: what is measured.
        value: takes a round and returns the figure, or ``None`` where something was not measured.
        bound: what it must reach; ``None`` for no promise.
        is_least: whether ``bound`` is the least allowed, not the most.
        aim: more than promised, in words.
    """

    what: str
    value: Callable[[Round], float | None]
    bound: float | None
    is_least: bool = True
    aim: str = ""

    def over(self, rounds: Sequence[Round]) -> Spread | None:
        """Return the figure over rounds; ``None`` unless every round has it."""
        values = [self.value(each) for each in rounds]
        known = [value for value in values if value is not None]
        return Spread.of(known) if known and len(known) == len(values) else None

    def words(self) -> str:
        """Return the promise for a table."""
        if self.bound is None:
            return "none"
        return f"{'≥' if self.is_least else '≤'} {self.bound:g}" + (self.aim and f", {self.aim}")

    def is_met(self, rounds: Sequence[Round]) -> bool | None:
        """Return whether the median keeps the promise; ``None`` where there is none to judge."""
        spread = self.over(rounds)
        if spread is None or self.bound is None:
            return None
        return spread.median >= self.bound if self.is_least else spread.median <= self.bound


def speed(found: Round, name: str, concurrency: int = 64) -> float | None:
    """Return a server's images/s in a round; ``None`` where not measured or void."""
    load = found.get(name, {}).get(str(concurrency))
    if load is None or why_void(load):
        return None
    return float(load["images_per_second"])


def _ratio(*below: str) -> Callable[[Round], float | None]:
    def value(found: Round) -> float | None:
        rivals = [known for name in below if (known := speed(found, name))]
        own = speed(found, "ours")
        return own / max(rivals) if own is not None and rivals else None

    return value


def _of_limit(found: Round) -> float | None:
    own, limit = speed(found, "ours"), found.get("limit")
    return own / float(limit["machine"]["images_per_second"]) if own and limit else None


def _no_collapse(found: Round) -> float | None:
    speeds = {key: speed(found, "ours", int(key)) for key in found.get("ours", {})}
    known = [value for value in speeds.values() if value is not None]
    at_most = speeds.get("256")
    # A level that is void might have been the best.
    return at_most / max(known) if at_most and len(known) == len(speeds) else None


def _lone_request(found: Round) -> float | None:
    if speed(found, "ours", 1) is None or "limit" not in found:
        return None
    ways = ("single_one_thread", "single_all_threads")
    single = min(float(found["limit"][way]["median_ms"]) for way in ways)
    return float(found["ours"]["1"]["p50_ms"]) / (SINGLE * single + SLACK_MS)


TARGETS: Final = (
    Target(what="ours at 256 / ours at its best", value=_no_collapse, bound=0.9),
    Target(what="ours / ray_recipe, at 64", value=_ratio("ray_recipe"), bound=3.0),
    Target(what="ours / ray_recipe_tuned, at 64", value=_ratio("ray_recipe_tuned"), bound=None),
    Target(
        what="ours / the better litserve, at 64",
        value=_ratio("litserve", "litserve_fast_queue"),
        bound=1.3,
    ),
    Target(what="ours at 64 / limit", value=_of_limit, bound=0.5, aim="aim 0.6"),
    Target(
        what="p50 of ours at 1 / (1.5 × one image by the bare model + 10 ms)",
        value=_lone_request,
        bound=1.0,
        is_least=False,
    ),
)


ARCHIVE_TARGETS: Final = (
    Target(what="jobs.score, images/s", value=lambda found: found["job_speed"], bound=None),
    Target(what="the endpoint, images/s", value=lambda found: found["serve_speed"], bound=None),
    Target(what="the endpoint / jobs.score", value=lambda found: found["ratio"], bound=0.85),
    Target(what="p99 of single cells alone, ms", value=lambda found: found["alone_ms"], bound=None),
    Target(what="p99 beside an archive, ms", value=lambda found: found["beside_ms"], bound=None),
    Target(
        what="p99 beside / alone", value=lambda found: found["ms_ratio"], bound=2.0, is_least=False
    ),
)


def judged(targets: Sequence[Target], rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Return promises and what came of them, for JSON."""
    found = []
    for target in targets:
        spread = target.over(rounds)
        value = spread and {"median": spread.median, "low": spread.low, "high": spread.high}
        found.append(
            {
                "what": target.what,
                "target": target.words(),
                "value": value,
                "met": target.is_met(rounds),
            }
        )
    return found


def best_speed(rounds: Sequence[Round], name: str) -> float | None:
    """Return the most images/s that a server had at any concurrency, by medians over rounds."""
    levels = {key for found in rounds for key in found.get(name, {})}
    medians = []
    for key in levels:
        known = [value for found in rounds if (value := speed(found, name, int(key)))]
        medians += [Spread.of(known).median] if known else []
    return max(medians, default=None)


def table(rounds: Sequence[Round]) -> str:
    """Return everybody's figures at every concurrency, for a terminal."""
    heads = ("images/s", "p50 ms", "p99 ms", "generator", "agreement")
    rows = [["", "at", *heads, ""]]
    first = rounds[0] if rounds else {}
    for name, loads in first.items():
        for key in loads:
            every = [found[name][key] for found in rounds if key in found.get(name, {})]
            rows.append([name, key, *_cells(name, every)])
    return aligned(rows)


def _cells(name: str, every: Sequence[Mapping[str, Any]]) -> list[str]:
    if name == "limit":
        per_second = Spread.of(load["images_per_second"] for load in every)
        batch_ms = Spread.of(load["median_ms"] for load in every)
        return [per_second.text(), batch_ms.text(1), "", "", "", f"batches of {every[0]['batch']}"]
    if why := next((why for load in every if (why := why_void(dict(load)))), None):
        return ["void", "", "", "", "", why[:120]]
    agreement = [load["agreement"] for load in every if load["agreement"] is not None]
    return [
        Spread.of(load["images_per_second"] for load in every).text(),
        Spread.of(load["p50_ms"] for load in every).text(1),
        Spread.of(load["p99_ms"] for load in every).text(1),
        f"{Spread.of(load['cpu_share'] for load in every).median:.1%}",
        f"{min(agreement):.2%}" if agreement else "",
        "",
    ]


def target_table(targets: Sequence[Target], rounds: Sequence[Round]) -> str:
    """Return promises and what came of them, for a terminal."""
    rows = [["figure, by rounds", "", "target", ""]]
    for target in targets:
        spread, is_met = target.over(rounds), target.is_met(rounds)
        rows.append(
            [
                target.what,
                spread.text(2) if spread else "no measurement",
                target.words(),
                "" if is_met is None else ("met" if is_met else "MISSED"),
            ]
        )
    return aligned(rows)


def overload_table(loads: Sequence[Mapping[str, Any]]) -> str:
    """Return what became of more requests than can be answered, for a terminal."""
    if not loads:
        return "overload: not measured"
    heads = ("accepted/s", "p50 ms", "p99 ms", "bound", "503s", "p50 ms", "p99 ms", "target")
    rows = [["overload", *heads, ""]]
    for load in loads:
        if why := why_void(dict(load), may_refuse=True):
            rows.append([load["way"], "void", *[""] * 7, why[:120]])
            continue
        has_refused = load["refused_p99_ms"] is not None
        is_fast = has_refused and load["refused_p99_ms"] < REFUSED_MS
        without = load["num_without_retry_after"]
        rows.append(
            [
                load["way"],
                f"{load['images_per_second']:,.0f}",
                f"{load['p50_ms']:,.0f}",
                f"{load['p99_ms']:,.0f}",
                f"{accepted_bound_ms(load):,.0f}",
                f"{load['refused_share']:.1%}",
                f"{load['refused_p50_ms']:,.0f}" if has_refused else "none",
                f"{load['refused_p99_ms']:,.0f}" if has_refused else "none",
                f"< {REFUSED_MS:g}" + ("" if is_fast else " MISSED"),
                f"{without} without Retry-After" if without else "every 503 has Retry-After",
            ]
        )
    return aligned(rows)


def accepted_bound_ms(load: Mapping[str, Any]) -> float:
    """Return how long an accepted request may take at most, by the length of the queues.

    Every replica (one a core) has at most its bound waiting and two batches in work; they are gone
    after as many images at the speed at which images were answered. Twice that, for a speed that is
    not even.
    """
    waiting = NUM_CORES * (load["queued_images"] + 2 * BATCH)
    return 2000 * float(waiting) / max(float(load["images_per_second"]), 1e-9)


def line(name: str, load: Mapping[str, Any]) -> str:
    """Return one load as a line of progress."""
    why = why_void(dict(load), may_refuse=bool(load["num_refused"]))
    times = "" if load["p50_ms"] is None else f"p50 {load['p50_ms']:8.1f} ms"
    return (
        f"{name:<40}{load['images_per_second']:>8.0f} images/s  {times}  "
        f"generator {load['cpu_share']:.1%}" + (f"  void: {why[:200]}" if why else "")
    )
