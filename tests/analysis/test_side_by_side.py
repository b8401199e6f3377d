"""Completions under several settings, side by side."""

import html
import re

import jax
import pytest
from markdown_it import MarkdownIt

from gpt2_jax import GPT2, GPT2Config, InputError, LanguageModel
from gpt2_jax.analysis.side_by_side import Completion, SideBySide, grid, read_settings, side_by_side
from gpt2_jax.tokenizer_training import train_characters

HOSTILE = (
    "a|b\\|c `x` ``| **b** _i_ <b onclick='x'>&amp;&\n    <script>alert(1)</script>\n\n# [l](u) ~~s~~ $m$ \\ 1.  end"
)


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters(["the quick brown fox jumps over the lazy dog\n"])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


@pytest.fixture(scope="module")
def found(lm):
    rows, columns = grid(temperature=(0.5, 1)), [{"top_k": 3}, {"top_p": 0.9, "seed": 7}]
    return side_by_side(lm, ["the ", "fox"], rows, columns, seeds=(3, 4), max_new_tokens=8)


def test_a_cell_has_what_generate_gives(lm, found):
    pairs = [("the ", 3), ("the ", 4), ("fox", 3), ("fox", 4)]
    for j, temperature in enumerate((0.5, 1)):
        prompts, seeds = map(list, zip(*pairs))
        alone = lm.generate(prompts, seed=seeds, max_new_tokens=8, temperature=temperature, top_k=3)
        texts = [Completion(seed, text.completion) for seed, text in zip(seeds, alone)]
        assert [found.cells[0][j][0], found.cells[1][j][0]] == [texts[:2], texts[2:]]
        alone = lm.generate(["the ", "fox"], seed=7, max_new_tokens=8, temperature=temperature, top_p=0.9)
        texts = [[Completion(7, text.completion)] for text in alone]
        assert [found.cells[0][j][1], found.cells[1][j][1]] == texts


def test_what_draws_nothing_has_one_text_and_several_sequences_are_kept(lm):
    rows = [{"temperature": 0, "seed": 1}, {"num_return_sequences": 2, "seed": 5}]
    of = side_by_side(lm, ["the ", "fox"], rows, seeds=(0, 1), max_new_tokens=8)
    for table in of.cells:
        assert [[text.seed for text in row[0]] for row in table] == [[None], [5, 5]]
    (greedy,) = side_by_side(lm, ["the ", "fox"], [{"temperature": 0}], seeds=(0, 1), max_new_tokens=8).cells[0][0]
    assert greedy == of.cells[0][0][0]


def table(text, prompt, rows=({"temperature": 1},), columns=({},)):
    return SideBySide(
        [prompt], list(rows), list(columns), {}, [[[[Completion(0, text)] for _ in columns] for _ in rows]]
    )


def rendered(markdown):
    """The cells of a Markdown table as text, read by a Markdown parser."""
    page = MarkdownIt().enable(["table", "strikethrough"]).render(markdown)
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", page, re.S)
    for cell in cells:
        assert set(re.findall(r"<[^>]*>", cell)) <= {"<br>", "<br />"}, cell
    text = lambda cell: html.unescape(re.sub(r"<br ?/?>", "\n", cell)).replace("\u00a0", " ")
    return [text(cell) for cell in cells]


@pytest.mark.parametrize(
    "text",
    [HOSTILE, "   indented\n\n  twice  ", "| --- |\n| a |", "", "\\", "`", "a  b   c", "<br>", "&nbsp;", "é 你好"],
)
def test_hostile_texts_are_shown_as_they_are(text):
    settings = [{"stop_strings": ["|", "<b>"]}]
    found = table(text, text, rows=settings)
    prompt, _, name, completion = rendered(found.markdown())
    assert completion.strip() == text.strip() and name == 'stop_strings ["|", "<b>"]'
    assert prompt.strip() == (text.strip() or "(no prompt)")
    for page in (found.page(), found._repr_html_()):
        assert "<script" not in page and "<b" not in page.replace("<body", "").replace("<base", "")
        cells = re.findall(r'<div class="text" style="white-space: pre-wrap">(.*?)</div>', page, re.S)
        assert [html.unescape(cell) for cell in cells] == [text]


def test_what_cannot_be_seen_is_shown_by_its_code():
    found = table("a\x1b[31m\r\u202e\tb", "p")
    assert rendered(found.markdown())[-1] == r"a\x1b[31m\r\u202e   b"
    assert r"a\x1b[31m\r\u202e" in found.page()


def test_headings_seeds_and_what_all_share(found):
    markdown = found.markdown()
    assert markdown.startswith("Every text: max\\_new\\_tokens 8\n\n| the  | top\\_k 3 | top\\_p 0.9, seed 7 |\n")
    assert markdown.count("(seed 3)<br>") == markdown.count("(seed 4)<br>") == 4 and "(seed 7)" not in markdown
    page = found.page(title="a < b")
    assert "<h1>a &lt; b</h1>" in page and "Every text: max_new_tokens 8" in page
    assert page.count(">seed 3<") == 4
    assert '<th scope="col">top_p 0.9, seed 7</th>' in page and '<th scope="row">temperature 0.5</th>' in page


def test_without_columns_there_is_one_heading():
    assert rendered(table("a", "p").markdown()) == ["p", "completion", "temperature 1", "a"]
    assert '<th scope="col">' not in table("a", "p").page()


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("temperature=0.5,1; top_k=5", [{"temperature": 0.5, "top_k": 5}, {"temperature": 1, "top_k": 5}]),
        ("control=verse,tales", [{"control": "verse"}, {"control": "tales"}]),
        ("early_stopping=true;num_beams=4", [{"early_stopping": True, "num_beams": 4}]),
        (' [{"top_p": 0.9}, {}]', [{"top_p": 0.9}, {}]),
    ],
)
def test_settings_of_a_command_line(text, settings):
    assert read_settings(text) == settings


@pytest.mark.parametrize("text", ["temperature", "=1", "top_k=", "top_k=1;top_k=2", "[", "[1]", "[]", "[" * 100_000])
def test_what_are_no_settings(text):
    message = r"the settings are '.*; it must be like temperature=0\.7,1;top_p=0\.9 or JSON: \[\{\"temperature\": 0\.7"
    with pytest.raises(InputError, match=message):
        read_settings(text)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], [{}]), {}, "the number of prompts is 0; it must be at least 1"),
        ((["a"], []), {}, "the number of rows is 0; it must be at least 1"),
        ((["a"], [{}], []), {}, "the number of columns is 0; it must be at least 1"),
        ((["a"], [{}]), {"seeds": ()}, "the number of seeds is 0; it must be at least 1"),
        (
            (["a"], [{"top_k": 1}], [{"top_k": 2}]),
            {},
            "top_k is given twice, for a row, a column or all texts; give it",
        ),
        ((["a"], [{"top_k": 1}]), {"top_k": 3}, "top_k is given twice"),
        ((["a"], [{}, {"topp": 1}]), {}, "there is no option 'topp'; did you mean 'top_p'?"),
        ((["a"], [{"temperature": 0}], [{"top_k": 5}]), {}, "top_k is 5, which has no effect without a temperature"),
    ],
)
def test_what_cannot_be_set_side_by_side(lm, arguments, options, message):
    with pytest.raises(InputError) as error:
        side_by_side(lm, *arguments, **options)
    assert message in str(error.value)
