"""The page as its reader sees it: in Chromium, by mouse and by keyboard."""

import html.parser

import numpy as np
import pytest

from gpt2_jax.analysis.coloured_text import fragment, page, percent
from gpt2_jax.analysis.probabilities import TokenProbabilities, token_probabilities

HOSTILE = [
    "<script>alert(1)</script>",
    "␣</label>",
    "⏎",
    '"><img␣src=x␣onerror=alert(2)>',
    "&amp;",
    "\\xe2",
    "{{␣7*7␣}}",
    "z",
]


@pytest.fixture(scope="module")
def of() -> TokenProbabilities:
    T = len(HOSTILE)
    top = np.log(np.tile(np.array([0.5, 0.25, 0.00001], np.float32), (T, 1)))
    return TokenProbabilities(
        tokens=np.arange(T),
        labels=HOSTILE,
        texts=HOSTILE,
        surprisal=np.linspace(0, 20, T, dtype=np.float32),
        rank=np.array([1, 2, 10, 11, 100, 101, 1000, 5000], np.int32),
        entropy=np.full(T, 3.25, np.float32),
        top_tokens=np.tile(np.array([2, 100, 101], np.int32), (T, 1)),
        top_labels=[["⏎", "<b>bold</b>", "'"]] * T,
        top_logprobs=top,
    )


class Elements(html.parser.HTMLParser):
    """All elements with their attributes, and the text outside style."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self.within = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.within.append(tag)

    def handle_endtag(self, tag):
        self.within = self.within[: len(self.within) - 1 - self.within[::-1].index(tag)]

    def handle_data(self, data):
        if "style" not in self.within:
            self.text += data


def test_texts_are_shown_and_not_run(of):
    elements = Elements(page(of, "a <title>"))
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "img", "iframe", "object"}
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    for text in (
        "<script>alert(1)</script>",
        " </label>",
        "⏎\n",
        '"><img src=x onerror=alert(2)>',
        "&amp;",
        "{{ 7*7 }}",
    ):
        assert text in elements.text
    assert elements.text.count("<b>bold</b>") == len(HOSTILE) and "a <title>" in elements.text


def test_it_asks_for_no_other_file_and_names_are_its_own(of, tiny_lm):
    text = page(of, "a")
    addresses = [a for _, attributes in Elements(text).found for name in ("src", "href") if (a := attributes.get(name))]
    assert addresses == ["data:,"] and "url(" not in text and "@import" not in text
    other = token_probabilities(tiny_lm, "to be")
    ids = [
        attributes["id"] for _, attributes in Elements(fragment(of) + other._repr_html_()).found if "id" in attributes
    ]
    assert len(ids) == len(set(ids)) == len(HOSTILE) + 5
    assert other._repr_html_() == fragment(other) and "5 tokens, perplexity" in fragment(other)


def test_a_token_tells_its_numbers_and_its_alternatives(of):
    inputs = [attributes for tag, attributes in Elements(fragment(of)).found if tag == "input"]
    assert inputs[2]["aria-label"] == "<script>alert(1)</script>, 0.00 bits, rank 1"
    assert inputs[-1]["aria-label"] == "z, 20.00 bits, rank 5,000"
    styles = [(a["class"], a["style"]) for tag, a in Elements(fragment(of)).found if tag == "label" and "style" in a]
    assert styles[0] == ("rank0", "--share:0%") and styles[-1] == ("rank3", "--share:100%")
    assert [name[-1] for name, _ in styles] == list("00011223")
    assert percent(0.5) == "50.00 %" and percent(0.0001) == "0.01 %" and percent(1.234e-7) == "1.2e-07"


@pytest.fixture
def shown(browser, of, tmp_path):
    """The page of a phone's width, and what its console and its dialogs said."""
    (tmp_path / "page.html").write_text(page(of, "What was expected"), encoding="utf-8")
    opened, said = browser.new_page(viewport={"width": 390, "height": 700}), []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    opened.goto((tmp_path / "page.html").as_uri())
    yield opened
    assert not said and opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.close()


def test_a_click_shows_the_alternatives_until_they_are_closed(shown):
    cards = shown.locator(".card:visible")
    assert cards.count() == 0
    shown.locator(".token label").nth(2).click()
    shown.mouse.move(1, 1)
    assert cards.count() == 1
    assert cards.inner_text().split("\n")[2:] == ["⏎", "50.00 %", "<b>bold</b>", "25.00 %", "'", "1.0e-05"]
    assert shown.locator(".card:visible .chosen").inner_text().startswith("⏎")
    shown.locator(".token label").last.hover()  # looks at another for as long as the mouse is there
    assert cards.count() == 1 and "rank 5,000" in cards.inner_text()
    shown.mouse.move(1, 1)
    assert "rank 10 " in cards.inner_text()
    shown.locator(".card:visible button").click()
    shown.mouse.move(1, 1)
    assert cards.count() == 0


def test_the_arrow_keys_go_from_token_to_token(shown):
    shown.locator(".token label").last.hover()  # the mouse rests somewhere
    shown.keyboard.press("Tab"), shown.keyboard.press("Tab")  # past the colours, to the first token
    assert "rank 1 " in shown.locator(".card:visible").inner_text()
    shown.keyboard.press("Space"), shown.keyboard.press("ArrowRight"), shown.keyboard.press("ArrowRight")
    assert "rank 10 " in shown.locator(".card:visible").inner_text()


def test_colours_are_of_surprisal_or_of_rank(shown):
    ground = lambda i: shown.locator(".token label").nth(i).evaluate("x => getComputedStyle(x).backgroundColor")
    by_surprisal = [ground(i) for i in range(len(HOSTILE))]
    assert len(set(by_surprisal)) == 7 and shown.locator(".of-rank").is_hidden()  # the last two are at the end
    shown.check("[value=rank]")
    by_rank = [ground(i) for i in range(len(HOSTILE))]
    assert [by_rank.index(colour) for colour in by_rank] == [0, 0, 0, 3, 3, 5, 5, 7]
    assert shown.locator(".of-rank").is_visible() and shown.locator(".of-surprisal").is_hidden()
