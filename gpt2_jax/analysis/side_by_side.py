"""Completions of the same prompts and seeds under several settings, as a table: Markdown, HTML, or in a notebook."""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2_jax.analysis import pages
from gpt2_jax.errors import InputError, check, one_line, shown
from gpt2_jax.generation.options import parse
from gpt2_jax.language_model import Generation, LanguageModel

Setting = Mapping[str, Any]  # options of `generate`
MARKDOWN = str.maketrans({c: f"\\{c}" for c in "`*_[]<>&~$#"} | {c: f"&#{ord(c)};" for c in "|\\"})


@dataclasses.dataclass(frozen=True)
class Completion:
    """One text of a cell: `seed` is the one that drew it, None where nothing is drawn."""

    seed: int | None
    text: str


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """A table for each prompt; a notebook shows it.

    Attributes:
      prompts: as given.
      rows, columns: the settings; one that is empty has no heading.
      options: what all of them share.
      cells: the completions, by prompt, row and column.
    """

    prompts: list[str]
    rows: list[Setting]
    columns: list[Setting]
    options: Setting
    cells: list[list[list[list[Completion]]]]

    def markdown(self) -> str:
        """Tables of GitHub's Markdown: whatever the texts hold is shown as it is, line breaks and spaces too."""
        written = [f"Every text: {_markdown(name_of(self.options))}\n"] if self.options else []
        headings = [name_of(setting) for setting in self.columns]
        for prompt, table in zip(self.prompts, self.cells):
            lines = [[prompt or "(no prompt)", *(headings if any(headings) else ["completion"])]]
            lines += [[name_of(row), *map(_joined, cells)] for row, cells in zip(self.rows, table)]
            heading, *body = ["".join(f"| {_markdown(cell)} " for cell in line) + "|\n" for line in lines]
            rule = "| --- " * len(lines[0]) + "|\n"
            written.append(f"{heading}{rule}{''.join(body)}")
        return "\n".join(written)

    def page(self, title: str = "Side by side") -> str:
        """HTML that needs no other file."""
        return pages.render("side_by_side.html", title=title, found=self, name_of=name_of, shown_text=printable)

    def _repr_html_(self) -> str:
        return pages.render("side_by_side_tables.html", found=self, name_of=name_of, shown_text=printable)


def side_by_side(
    lm: LanguageModel,
    prompts: str | Sequence[str],
    rows: Sequence[Setting],
    columns: Sequence[Setting] = ({},),
    *,
    seeds: Sequence[int] = (0,),
    **options: Any,
) -> SideBySide:
    """Continues each prompt under each row's and column's options together, with the same seeds everywhere.

    Args:
      lm: the model.
      prompts: a text or several.
      rows, columns: options of `generate`, any of them; see `grid`.
      seeds: of the texts of each cell; a setting with a `seed` of its own takes that, and one that draws nothing none.
      **options: what all texts share.

    Raises:
      InputError: nothing to compare, an option that is given twice, or one that `generate` refuses.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    for what, given in (("prompts", prompts), ("rows", rows), ("columns", columns), ("seeds", seeds)):
        check(len(given) > 0, f"the number of {what}", 0, "at least 1")
    for row, column in itertools.product(rows, columns):
        if twice := sorted((row.keys() & column.keys()) | (options.keys() & (row.keys() | column.keys()))):
            raise InputError(f"{twice[0]} is given twice, for a row, a column or all texts; give it in one place")
        parse({"seed": 0} | options | row | column)  # refuses what is wrong before anything is drawn
    by_setting = [[_draw(lm, prompts, seeds, {**options, **row, **column}) for column in columns] for row in rows]
    cells = [[[cell[i] for cell in line] for line in by_setting] for i in range(len(prompts))]
    return SideBySide(prompts, list(rows), list(columns), options, cells)


def grid(**values: Sequence[Any]) -> list[Setting]:
    """All combinations: `grid(temperature=(0.7, 1), top_p=(0.9,))` has two settings."""
    return [dict(zip(values, combination)) for combination in itertools.product(*values.values())]


def read_settings(text: str) -> list[Setting]:
    """The settings of a command line: "temperature=0.7,1; top_p=0.9" is a `grid`, and a JSON list of objects itself.

    Raises:
      InputError: it is neither.
    """
    wrong = 'it must be like temperature=0.7,1;top_p=0.9 or JSON: [{"temperature": 0.7}, {"num_beams": 4}]'
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the settings are {shown(text)} ({one_line(error)}); {wrong}") from None
        if not found or not all(isinstance(setting, dict) for setting in found):
            raise InputError(f"the settings are {shown(text)}; {wrong}")
        return found
    values = {}
    for part in filter(str.strip, text.split(";")):
        name, equals, several = part.partition("=")
        if not equals or not name.strip() or not several.strip() or name.strip() in values:
            raise InputError(f"the settings are {shown(text)}; {wrong}, each option once")
        values[name.strip()] = [_value(value.strip()) for value in several.split(",")]
    return grid(**values)


def name_of(setting: Setting) -> str:
    """A setting as a heading: "temperature 0.7, top_p 0.9"."""
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False, default=str)}" for name, value in setting.items())


def printable(text: str) -> str:
    """A text whose characters can all be seen: what controls a terminal or the direction of writing by its code."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _draw(lm: LanguageModel, prompts: Sequence[str], seeds: Sequence[int], options: dict) -> list[list[Completion]]:
    """Each prompt's completions."""
    drawn = parse(options).drawing_temperature > 0
    seeds = [options.pop("seed")] if "seed" in options else list(seeds if drawn else seeds[:1])
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    texts: list[Generation] = lm.generate([prompt for prompt, _ in pairs], seed=[seed for _, seed in pairs], **options)
    of_pair = len(texts) // len(pairs)
    found = [Completion(pairs[i // of_pair][1] if drawn else None, text.completion) for i, text in enumerate(texts)]
    of_prompt = len(found) // len(prompts)
    return [found[i : i + of_prompt] for i in range(0, len(found), of_prompt)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _joined(cell: Sequence[Completion]) -> str:
    if len(cell) == 1:
        return cell[0].text
    return "\n".join(f"({i if c.seed is None else f'seed {c.seed}'})\n{c.text}" for i, c in enumerate(cell, 1))


def _markdown(text: str) -> str:
    """A text within a cell: nothing in it is read as Markdown or HTML, and no space is lost."""
    spaces = lambda found: "&nbsp;" * len(found[0])
    lines = printable(text).expandtabs(4).split("\n")
    return "<br>".join(re.sub(r"^ +| {2,}", spaces, line.translate(MARKDOWN)) for line in lines)
