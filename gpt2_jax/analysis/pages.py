"""Pages and pictures as files: HTML that needs no other file, and matplotlib's figures, alone or within it."""

import base64
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from gpt2_jax import whole_files
from gpt2_jax.analysis.plots import SUFFIXES, image
from gpt2_jax.errors import InputError, check

PICTURES = (*SUFFIXES, ".html")  # a figure may be
LARGEST_SVG = 300_000  # bytes; a picture of so many shapes is smaller as pixels


def render(template_name: str, **values: Any) -> str:
    """The page that a file of `templates/` makes of `values`; texts are escaped, `markupsafe.Markup` is HTML already.

    Raises:
      jinja2.UndefinedError: a value that the template names is not given.
    """
    return _templates().get_template(template_name).render(**values)


def embedded(figure: Figure) -> str:
    """A figure as a data URI for `<img src>`: SVG, or PNG where that would be large. The same figure, the same URI."""
    svg = image(figure, ".svg")
    kind, data = ("svg+xml", svg) if len(svg) <= LARGEST_SVG else ("png", image(figure, ".png"))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def write(file: Path, drawn: Figure | str, title: str = "") -> None:
    """Writes a picture or a text; a figure becomes a page of its own, with `title`, where the suffix is .html.

    Raises:
      InputError: a suffix that it cannot have, or the disk refuses.
    """
    if isinstance(drawn, str):
        data = drawn.encode(errors="backslashreplace")
    else:
        check_suffix(file, PICTURES)
        if file.suffix == ".html":
            data = render("figure.html", title=title, image=embedded(drawn)).encode()
        else:
            data = image(drawn, file.suffix)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_files.write(file, data)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}); give a file in a folder with room") from None


def check_suffix(file: Path, suffixes: tuple[str, ...]) -> None:
    """Raises `InputError` unless the file's suffix, which decides the format, is one of `suffixes`."""
    allowed = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if len(suffixes) > 1 else suffixes[0]
    check(file.suffix in suffixes, "output", str(file), f"a file with the suffix {allowed}, which decides the format")


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("gpt2_jax.analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
