"""The kinds of controls: each makes a Gradio component, and reads what came for it, from the page or made by hand."""

import dataclasses
import math
from typing import Any

import gradio as gr

from gpt2_jax.errors import InputError, check, shown

LONGEST_FIELD = 2_000  # characters of a control in which one types
MOST_ENTRIES = 64  # phrases or ids in it


@dataclasses.dataclass(frozen=True)
class Slider:
    """A number in bounds, which the server keeps, too; whole where `step` is.

    Attributes:
      low, high: the least and greatest value.
      step: between two values on the page; others are taken as well.
      start: what it has at first; whoever sends nothing gets this.
    """

    low: float
    high: float
    step: float
    start: float

    def component(self, **words: Any) -> gr.Slider:
        """What the reader sees."""
        return gr.Slider(self.low, self.high, self.start, step=self.step, **words)

    def read(self, name: str, given: Any) -> float | int:
        """The option's value of what the page sent, checked."""
        if given is None:
            return self.start
        value = number(name, given, whole=isinstance(self.step, int))
        check(self.low <= value <= self.high, name, value, f"from {self.low} to {self.high} on this page")
        return value


@dataclasses.dataclass(frozen=True)
class OptionalNumber:
    """A number in bounds that may be left out; it is typed."""

    low: float
    high: float
    whole: bool = False

    def component(self, **words: Any) -> gr.Number:
        return gr.Textbox("", max_lines=1, max_length=40, placeholder="none", **words)

    def read(self, name: str, given: Any) -> float | int | None:
        if given is None or given == "":
            return None
        value = number(name, written(name, given), whole=self.whole)
        check(self.low <= value <= self.high, name, value, f"from {self.low} to {self.high} on this page")
        return value


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values, each with its words."""

    choices: tuple[tuple[str, Any], ...]
    start: Any

    def component(self, **words: Any) -> gr.Dropdown:
        return gr.Dropdown(list(self.choices), value=self.start, **words)

    def read(self, name: str, given: Any) -> Any:
        if given is None:
            return self.start
        known = [value for _, value in self.choices]
        same = [value for value in known if value == given and type(value) is type(given)]
        check(bool(same), name, given, f"one of {', '.join(map(repr, known))}")
        return same[0]


@dataclasses.dataclass(frozen=True)
class Code:
    """A control code of the model, or none; which there are is the model's to say."""

    def component(self, **words: Any) -> gr.Dropdown:
        return gr.Dropdown([("none", "")], value="", **words)

    def read(self, name: str, given: Any) -> str | None:
        return text(name, given) or None


@dataclasses.dataclass(frozen=True)
class Line:
    """Text, or nothing."""

    lines: int = 1

    def component(self, **words: Any) -> gr.Textbox:
        return gr.Textbox("", lines=self.lines, max_lines=self.lines + 4, max_length=LONGEST_FIELD, **words)

    def read(self, name: str, given: Any) -> Any:
        return text(name, given) or None


class Phrases(Line):
    """Texts, one a line; \\n within one is a line break."""

    def read(self, name: str, given: Any) -> tuple[str, ...] | None:
        lines = [line for line in text(name, given).split("\n") if line]
        check(len(lines) <= MOST_ENTRIES, name, f"{len(lines)} lines", f"at most {MOST_ENTRIES}")
        return tuple(line.replace("\\n", "\n") for line in lines) or None


class Ids(Line):
    """Token ids with commas between them."""

    def read(self, name: str, given: Any) -> tuple[int, ...] | None:
        entries = [entry for entry in text(name, given).replace(",", " ").split() if entry]
        check(len(entries) <= MOST_ENTRIES, name, f"{len(entries)} ids", f"at most {MOST_ENTRIES}")
        try:
            return tuple(map(int, entries)) or None
        except ValueError:
            raise InputError(f"{name} is {shown(given)}; it must be token ids with commas between them") from None


class Pair(Line):
    """Two numbers with a comma between them."""

    def read(self, name: str, given: Any) -> tuple[float, float] | None:
        if not (entries := text(name, given).replace(",", " ").split()):
            return None
        try:
            first, second = (number(name, written(name, entry)) for entry in entries)
        except ValueError:
            raise InputError(f"{name} is {shown(given)}; it must be two numbers with a comma between them") from None
        return first, second


class Biases(Line):
    """Lines of a phrase, an equals sign and a number."""

    def read(self, name: str, given: Any) -> dict[str, float] | None:
        biases = {}
        for line in filter(None, text(name, given).split("\n")):
            phrase, equals, bias = line.rpartition("=")
            try:
                biases[phrase.replace("\\n", "\n")] = float(bias)
            except ValueError:
                equals = ""
            if not (equals and phrase):
                raise InputError(
                    f"{name} has the line {shown(line)}; it must be a phrase, = and a number, as: cat=-2.5"
                )
        check(len(biases) <= MOST_ENTRIES, name, f"{len(biases)} lines", f"at most {MOST_ENTRIES}")
        return biases or None


def number(name: str, given: Any, whole: bool = False) -> float | int:
    """A finite number, as whole as asked for; a text of one is none.

    Raises:
      InputError: it is something else.
    """
    kind = "a whole number" if whole else "a number"
    right = isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)
    check(right and (not whole or given == int(given)), name, given, kind)
    return int(given) if whole else given


def written(name: str, given: Any) -> Any:
    """The number that a text spells; what is no text, as it is.

    Raises:
      InputError: it spells none.
    """
    if not isinstance(given, str):
        return given
    try:
        return int(given) if given.strip().lstrip("+-").isdecimal() else float(given)
    except ValueError:
        raise InputError(f"{name} is {shown(given)}; it must be a number") from None


def text(name: str, given: Any, longest: int = LONGEST_FIELD) -> str:
    """A text of bounded length; nothing is an empty one.

    Raises:
      InputError: it is no text, or too long.
    """
    if given is None:
        return ""
    check(isinstance(given, str), name, given, "text")
    check(len(given) <= longest, name, f"{len(given)} characters", f"at most {longest} characters on this page")
    return given
