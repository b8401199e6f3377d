"""Pages and pictures as files."""

import base64
import xml.etree.ElementTree as ElementTree

import jinja2
import pytest

from gpt2_jax import InputError
from gpt2_jax.analysis import pages, plots


@pytest.fixture(scope="module")
def figure():
    figure = plots.Picture(3, 2)
    figure.add_subplot().plot([1, 2], [3, 4])
    return figure


def test_texts_are_escaped_and_values_must_be_there():
    page = pages.render("figure.html", title="<script>alert(1)</script> & more", image="data:,")
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    with pytest.raises(jinja2.UndefinedError, match="'image' is undefined"):
        pages.render("figure.html", title="a")


def test_a_picture_within_a_page_is_a_vector_or_where_that_is_large_pixels(figure, monkeypatch):
    kind, data = pages.embedded(figure).split(";base64,")
    assert kind == "data:image/svg+xml"
    assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert pages.embedded(figure) == pages.embedded(figure)
    monkeypatch.setattr(pages, "LARGEST_SVG", 100)
    kind, data = pages.embedded(figure).split(";base64,")
    assert kind == "data:image/png" and base64.b64decode(data) == figure._repr_png_()


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_suffix_decides_and_the_same_figure_gives_the_same_bytes(figure, tmp_path, suffix, start):
    file = tmp_path / "new" / f"a{suffix}"
    pages.write(file, figure)
    written = file.read_bytes()
    assert written.startswith(start)
    pages.write(file, figure)
    assert file.read_bytes() == written


def test_a_figure_becomes_a_page_of_its_own_and_a_text_is_written_as_it_is(figure, tmp_path):
    pages.write(tmp_path / "a.html", figure, title="a < b")
    page = (tmp_path / "a.html").read_text()
    assert "<h1>a &lt; b</h1>" in page and pages.embedded(figure) in page
    pages.write(tmp_path / "b.md", "é | \ud800")
    assert (tmp_path / "b.md").read_text() == "é | \\ud800"


def test_what_cannot_be_written(figure, tmp_path):
    message = r"output is '.*a\.gif'; it must be a file with the suffix \.png, \.svg, \.pdf or \.html, which decides"
    with pytest.raises(InputError, match=message):
        pages.write(tmp_path / "a.gif", figure)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a\.png cannot be written \(.*\); give a file in a folder with room"):
        pages.write(tmp_path / "file" / "a.png", figure)


def test_dollar_signs_begin_no_formula():
    assert plots.plain("a $b$") == r"a \$b\$"
