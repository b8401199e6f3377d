"""The page in a browser, as a reader uses it: at a desk and on a phone, light and dark."""

import re

import numpy as np
import pytest
from PIL import Image

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
TABS = ("Write", "Probabilities", "Attention", "Compare", "Caption")


def opened(browser, address, **context):
    """A page that fails the test of any error, and of any request to elsewhere."""
    page = browser.new_page(**{"viewport": DESK, **context})
    page.set_default_timeout(60_000)
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.wrong.append(message.text))
    page.on("request", lambda request: request.url.startswith((address, "data:")) or page.wrong.append(request.url))
    page.goto(address)
    page.wait_for_selector("#write")
    return page


@pytest.fixture(scope="module")
def page(browser, address):
    page = opened(browser, address)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield page
    page.close()


@pytest.fixture(autouse=True)
def nothing_wrong(request):
    yield
    if "page" in request.fixturenames:
        page = request.getfixturevalue("page")
        assert page.wrong == []


def all_of(lm, prompt, **options):
    """What `generate` writes until the context is full, with the settings of a fresh page."""
    room = lm.config.n_positions - len(lm.tokenizer.encode(prompt))
    return lm.generate(prompt, temperature=0.8, top_p=0.95, max_new_tokens=room, **options).completion


def go_to(page, tab):
    page.get_by_role("tab", name=tab).click()


def fill(box, text):
    """Types into a tab that may just have been opened: while Gradio makes it, its first value comes back."""
    while box.input_value() != text:
        box.fill(text)
        box.page.wait_for_timeout(300)


def slide(page, label, value):
    page.get_by_label(f"number input for {label}").first.fill(str(value))
    page.keyboard.press("Tab")


def write(page, prompt, seed=""):
    """Types, writes, and waits for the end: the texts on the cards."""
    go_to(page, "Write")
    page.locator("#prompt").get_by_label("Prompt").fill(prompt)
    page.locator("#seed").get_by_label("Seed").fill(seed)
    page.get_by_role("button", name="Write", exact=True).click()
    page.wait_for_selector("#results .card:not(.growing)")
    page.wait_for_function("!document.querySelector('#results .growing')")
    page.wait_for_selector("#write:enabled")
    return page.locator("#results .completion").all_text_contents()


def test_type_and_write(page, lms):
    (text,) = write(page, "def add", "5")
    assert text == all_of(lms["first"], "def add", seed=5)
    assert page.locator("#results .seed").inner_text() == "seed 5"
    assert re.match(r"\d+ tokens?", page.locator("#results .note").inner_text())


def test_what_a_model_writes_is_text_and_never_a_page(page):
    hostile = "<img src=x onerror=alert(1)>${alert(2)}{{value}}`\\u0041<b>"
    write(page, hostile)
    assert page.locator("#results .prompt").text_content() == hostile
    go_to(page, "Probabilities")
    fill(page.locator("#probabilities-text").get_by_label("Text"), hostile)
    page.click("#show-probabilities")
    page.wait_for_function(
        "[...document.querySelectorAll('.token')].map(t => t.textContent).join('').includes('onerror')"
    )
    assert page.locator("#results img, #tokens img, #results b, #tokens b").count() == 0


def test_sliders_move_and_several_candidates_come(page):
    go_to(page, "Write")
    slide(page, "New tokens", 12)
    slide(page, "Temperature", 1.5)
    slide(page, "Candidates", 3)
    texts = write(page, "for i in", "10")
    assert len(texts) == 3 and len(set(texts)) == 3
    assert page.locator("#results .seed").all_inner_texts() == ["seed 10", "seed 11", "seed 12"]
    slide(page, "Candidates", 1)


def test_a_seed_is_used_again(page):
    (first,) = write(page, "for i in")
    page.get_by_role("button", name="Use this seed again").click()
    seed = page.locator("#results .seed").inner_text().removeprefix("seed ")
    page.wait_for_function(f"document.querySelector('#seed input, #seed textarea').value === '{seed}'")
    assert write(page, "for i in", seed) == [first]


def test_copy(page):
    (text,) = write(page, "def add", "5")
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "def add" + text


def test_presets_fill_the_prompt(page):
    go_to(page, "Write")
    for name, beginning in (("Story", "Once upon"), ("Poem", "The evening"), ("Code", "def is_prime")):
        page.get_by_role("button", name=name, exact=True).click()
        page.wait_for_function(f"document.querySelector('#prompt textarea').value.startsWith('{beginning}')")


def test_a_method_shows_its_own_settings(page):
    go_to(page, "Write")
    temperature = page.get_by_label("number input for Temperature").first
    page.get_by_label("Method").first.click()
    page.get_by_role("option", name="Beam search").click()
    temperature.wait_for(state="hidden")
    page.get_by_label("number input for Beams").first.wait_for()
    page.get_by_label("Method").first.click()
    page.get_by_role("option", name="Sampling").click()
    temperature.wait_for()


def test_an_error_is_told(page):
    slide(page, "Candidates", 1)
    go_to(page, "Write")
    page.locator("#prompt").get_by_label("Prompt").fill("def " * 200)
    page.get_by_role("button", name="Write", exact=True).click()
    page.get_by_text("leave room for a new one").wait_for()
    page.wait_for_selector("#write:enabled")


def test_stop(page, endless):
    go_to(page, "Write")
    page.locator("#prompt").get_by_label("Prompt").fill("a")
    page.get_by_role("button", name="Write", exact=True).click()
    page.wait_for_function("document.querySelector('#results .growing .completion')?.textContent.length > 20")
    assert page.locator("#write").is_disabled()
    page.get_by_role("button", name="Stop").first.click()
    page.wait_for_function("document.querySelector('#results .card:not(.growing) .note')?.textContent === 'stopped'")
    page.wait_for_selector("#write:enabled")
    assert page.locator("#stop").is_disabled() and endless.cancelled.is_set()
    assert page.locator("#results .completion").text_content().startswith("word word")


def test_a_page_that_is_closed_is_not_written_for(browser, address, endless):
    page = opened(browser, address)
    page.get_by_role("button", name="Write", exact=True).click()
    page.wait_for_function("document.querySelector('#results .growing .completion')?.textContent.length > 20")
    page.close()
    assert endless.cancelled.wait(20)


def test_a_token_is_clicked_and_shows_its_alternatives(page):
    go_to(page, "Probabilities")
    fill(page.locator("#probabilities-text").get_by_label("Text"), "def add(a, b):\n    return a")
    page.click("#show-probabilities")
    page.wait_for_function("document.querySelectorAll('.token').length > 5")
    tokens = page.locator(".token")
    tokens.nth(2).click()
    label = tokens.nth(2).get_attribute("aria-label").rsplit(": ", 1)[0]
    assert page.locator(".alternatives h3").inner_text() == f"In the place of “{label}”"
    assert page.locator(".alternatives tbody tr").count() in (10, 11)
    assert page.locator(".alternatives tr.chosen").count() == 1
    tokens.nth(2).focus()
    page.keyboard.press("ArrowRight")
    assert tokens.nth(3).get_attribute("aria-pressed") == "true"
    before = tokens.nth(3).get_attribute("style")
    page.get_by_role("button", name="Entropy").click()
    assert tokens.nth(3).get_attribute("style") != before


def test_from_a_text_to_its_probabilities(page):
    write(page, "for i in", "4")
    page.get_by_role("button", name="See probabilities").click()
    page.wait_for_selector("#show-probabilities")
    page.wait_for_function("document.querySelector('#probabilities-text textarea').value.startsWith('for i in')")
    page.wait_for_function(
        "[...document.querySelectorAll('.token')].map(t => t.textContent).join('').startsWith('for i in')"
    )


def test_attention(page):
    go_to(page, "Attention")
    page.click("#show-attention")
    image = page.locator("#attention-picture img")
    image.wait_for()
    assert image.get_attribute("alt").startswith("Attention of head 0 of layer 0, ")
    slide(page, "Head", 1)
    page.wait_for_function("document.querySelector('#attention-picture img').alt.startsWith('Attention of head 1')")
    for view, words in (("All heads of a layer", "all heads of layer 0"), ("What kind each head is", "What kind each")):
        page.get_by_label(view).click()
        page.wait_for_function(f"document.querySelector('#attention-picture img').alt.includes('{words}')")
    page.get_by_label("One head").click()
    assert image.evaluate("image => image.naturalWidth") > 100


def test_compare(page, lms):
    go_to(page, "Compare")
    fill(page.locator("#compare-prompt textarea"), "def ")
    fill(page.locator("#compare-seed input, #compare-seed textarea"), "1")
    page.click("#compare")
    page.wait_for_selector("#compare-left .card:not(.growing)")
    page.wait_for_selector("#compare-right .card:not(.growing)")
    for side, name in (("left", "first"), ("right", "second")):
        text = page.locator(f"#compare-{side} .completion").text_content()
        assert text == all_of(lms[name], "def ", seed=1)


def test_caption(page, tmp_path):
    file = tmp_path / "seven.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(file)
    go_to(page, "Caption")
    page.locator("#caption-image input").set_input_files(file)
    page.get_by_text("seven.png, 8 \u00d7 8.").wait_for()
    page.click("#caption")
    page.wait_for_selector("#captions .card:not(.growing)")
    (tmp_path / "bad.png").write_text("<svg/>")
    page.locator("#caption-image input").set_input_files(tmp_path / "bad.png")
    page.get_by_text("That file cannot be read as a picture").wait_for()
    page.click("#caption")
    page.get_by_text("there is no picture; give a PNG").wait_for()


def test_another_model_is_chosen(page):
    page.locator("#model input").click()
    page.get_by_role("option", name="second").click()
    page.wait_for_function("document.querySelector('.facts').textContent.includes('context of 64')")
    go_to(page, "Write")
    page.get_by_role("button", name="Control and guidance").first.click()
    page.get_by_label("Control code").first.click()
    page.get_by_role("option", name="verse").click()
    write(page, "a", "1")


@pytest.mark.parametrize("width", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_tab_fits_in_light_and_dark(browser, address, width, mode):
    page = opened(browser, address, viewport=width, color_scheme=mode)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(background[:3]) < 200) == (mode == "dark")
    for tab in TABS:
        go_to(page, tab)
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        named = page.evaluate(
            """[...document.querySelectorAll('input, textarea, button')].filter(node => node.offsetParent &&
               !(node.labels?.length || node.ariaLabel || node.textContent.trim() || node.title)).length"""
        )
        assert named == 0, tab  # every control says what it is to those who do not see it
    assert page.wrong == []
    page.close()


def test_a_password_is_asked_for(browser, models, served):
    from gpt2_jax.app import make_app

    with served(make_app(models, password=("ada", "secret-1815"))) as address:
        page = opened(browser, address, http_credentials={"username": "ada", "password": "secret-1815"})
        assert len(write(page, "def add", "1")) == 1
        assert page.wrong == []
        page.close()
