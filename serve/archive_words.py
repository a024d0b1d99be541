"""The engine's sentences as a client of the endpoint needs them: it has no flags and no root.

Knows nothing of what the sentences are about.
"""

from __future__ import annotations

from typing import Final

_WORDS: Final = (
    (
        "To go on all the same, run the command again with a higher --max-quarantine",
        "To go on all the same, resume the run with a higher max_quarantine",
    ),
    (
        "run the same command again when nothing writes to it",
        "resume the run when nothing writes to it",
    ),
    ("run the same command again", "resume the run"),
    ("start the command again", "resume the run"),
    (
        "Choose another --out, ask for the same, or start anew there with --restart",
        "Start a new run",
    ),
    ("choose another --out, or start anew there with --restart", "start a new run"),
    ("with --slide-pattern and --restart", "with slide_pattern in a new run"),
    ("--max-quarantine", "max_quarantine"),
    ("--slide-pattern", "slide_pattern"),
    ("--store", "store"),
    ("--out", "out"),
)


def for_client(sentence: str, root_uri: str) -> str:
    """Return a sentence in a client's terms; places below the root are told without the root."""
    for ours, theirs in _WORDS:
        sentence = sentence.replace(ours, theirs)
    return sentence.replace(f"{root_uri.rstrip('/')}/", "")
