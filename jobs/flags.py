"""Command lines from frozen dataclasses: a field is a flag, its ``help`` says what it is for.

Also the one place where an error becomes a sentence and an exit code.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, Final, TypeVar

from bloodcells.errors import BloodcellsError, QuarantineLimitError, RunIncompleteError

Config = TypeVar("Config")

EXIT_ERROR: Final = 1
EXIT_INCOMPLETE: Final = 3
EXIT_INTERRUPTED: Final = 130

_GOES_ON: Final = "the same command goes on where this one stopped"
_BEGINS_ANEW: Final = "the same command begins anew"


def flag(help_text: str, *, default: Any = MISSING, metavar: str = "URI") -> Any:
    """Declare a dataclass field that is also a flag; without a default it must be given.

    Args:
        help_text: what the flag is for.
        default: what it is without being given.
        metavar: what ``--help`` calls one value of a flag that may be given several times.
    """
    metadata = {"help": help_text, "metavar": metavar}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(config_type: type[Config], job: str, argv: Sequence[str] | None = None) -> Config:
    """Read a configuration from the command line.

    A field of type ``bool`` is a switch, a ``tuple`` a flag that may be given several times.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{job}",
        description=(config_type.__doc__ or "").partition("\n\nAttributes:")[0],
    )
    hints = typing.get_type_hints(config_type)
    for item in fields(config_type):  # type: ignore[arg-type]
        _add_flag(parser, item, hints[item.name])
    given = vars(parser.parse_args(argv))
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    try:
        return config_type(**values)
    except ValueError as error:
        parser.error(str(error))


def run_job(job: Callable[[], object], *, goes_on: bool = True) -> int:
    """Run a job; errors made on purpose become one sentence on stderr and a non-zero exit code.

    Args:
        job: what is to be done.
        goes_on: whether the same command goes on where an interrupted one stopped; a short job
            begins anew.

    Returns:
        0 done; 1 refused or failed; 3 incomplete, go on with the same command; 130 interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    # What was imported stays to the end: no collection need walk it again. The last one of all, at
    # the interpreter's exit, took 1.7 s of a job's 24.
    gc.freeze()
    try:
        job()
    except (RunIncompleteError, QuarantineLimitError) as error:
        print(f"incomplete: {printable(error)}", file=sys.stderr)
        return EXIT_INCOMPLETE
    except BloodcellsError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f"interrupted: {_GOES_ON if goes_on else _BEGINS_ANEW}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _add_flag(parser: argparse.ArgumentParser, item: Field[Any], hint: Any) -> None:
    name = f"--{item.name.replace('_', '-')}"
    text = item.metadata["help"]
    if hint is bool:
        parser.add_argument(name, action="store_true", help=text)
        return
    is_required = item.default is MISSING
    if not is_required and item.default not in (None, ()):
        text = f"{text} (default: {item.default})"
    options: dict[str, Any] = {"help": text, "required": is_required}
    if not is_required:
        options["default"] = item.default
        if isinstance(item.default, tuple):
            options["default"] = list(item.default)  # argparse appends to a copy of it
    if typing.get_origin(hint) is tuple:
        options["action"] = "append"
        options["metavar"] = item.metadata.get("metavar", "URI")
    else:
        options["type"] = _plain_type(hint)
    parser.add_argument(name, **options)


def _plain_type(hint: Any) -> Any:
    """``int`` of ``int | None``."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def printable(message: object) -> str:
    """Return a message as text; it may name what data brought, and must not steer the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message)
    )


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt
