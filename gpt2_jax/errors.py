"""The one exception this package raises for what a person typed or a file holds."""

import difflib
from typing import Any

LONGEST_SHOWN, LONGEST_LINE = 200, 1000  # characters of a value, and of what another library says


class InputError(ValueError):
    """Bad input: the message says in one line what was wrong, the value, what is allowed and what to do.

    Scripts print it without a traceback and exit with status 2; library users may catch it as a `ValueError`.
    """


def one_line(error: BaseException) -> str:
    """What another library's error says, in one line: it may repeat what a file holds, however long and strange."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: Any) -> str:
    """A value as errors show it: what a file holds may be longer than a screen."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def check(ok: bool, option: str, value: Any, allowed: str) -> None:
    """Raises `InputError` naming the option, its value and what is allowed, unless `ok`."""
    if not ok:
        raise InputError(f"{option} is {shown(value)}; it must be {allowed}")


def suggest(name: str, known: list[str]) -> str:
    """The end of an error about an unknown `name`: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name[:LONGEST_SHOWN], known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
