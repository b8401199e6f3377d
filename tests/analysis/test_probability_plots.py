"""What is drawn is what was measured; warnings, of missing glyphs among them, are errors."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from gpt2_jax import InputError
from gpt2_jax.analysis import probability_plots
from gpt2_jax.analysis.plots import image
from gpt2_jax.analysis.probabilities import TokenProbabilities
from gpt2_jax.analysis.probability_plots import RANK_COLOURS, along_text, rank_histogram, text_picture

TEXTS = ["def", "␣$f$", "(", "\\x", "⏎", "⇥", "中", "␣␣", "x" * 100, "⏎", "␣end"]


def probabilities(texts, ranks=(1, 10, 11, 100, 101, 1000, 1001)):
    T = len(texts)
    rng = np.random.default_rng(0)
    surprisal, entropy = rng.uniform(0, 20, (2, T)).astype(np.float32)
    rank = np.resize(np.array(ranks, np.int32), T)
    top = np.log(np.tile(np.array([0.5, 0.25], np.float32), (T, 1)))
    return TokenProbabilities(
        np.arange(T), texts, texts, surprisal, rank, entropy, np.zeros((T, 2), np.int32), [["a", "b"]] * T, top
    )


@pytest.mark.parametrize("by", ["surprisal", "rank"])
def test_the_text_is_drawn_each_token_in_its_colour(by):
    of = probabilities(TEXTS)
    figure = text_picture(of, by)
    axes = figure.axes[0]
    drawn = [text.get_text() for text in axes.texts]
    assert drawn == ["def", " $f$", "(", "\\x", "⏎", "⇥   ", r"\u4e2d", "  ", "x" * 88, "x" * 12, "⏎", " end"]
    places = [(text.get_position()[0], int(text.get_position()[1])) for text in axes.texts]
    assert places[:4] == [(0, 0), (3, 0), (7, 0), (8, 0)] and places[5] == (0, 1) and places[-1] == (0, 4)
    assert places[7:11] == [
        (10, 1),
        (0, 2),
        (0, 3),
        (12, 3),
    ]  # what does not fit begins a line, and longer ones are cut
    colours = axes.collections[0].get_facecolors()
    if by == "rank":
        token = [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10]
        assert [tuple(c) for c in colours] == [to_rgba(RANK_COLOURS[of.rank_class[i]]) for i in token]
    else:
        light = colours[:, :3].mean(1)[[0, 1, 2, 3]]
        order = np.argsort(np.minimum(of.surprisal[:4], probability_plots.MOST_BITS))
        assert (np.diff(light[order]) <= 0).all() and light.min() < light.max()
    assert image(figure, ".png").startswith(b"\x89PNG")


def test_letters_can_be_read_on_every_ground():
    def luminance(colour):  # https://www.w3.org/TR/WCAG22/#dfn-relative-luminance
        rgb = np.array(to_rgba(colour)[:3])
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    grounds = [*RANK_COLOURS, *probability_plots.SURPRISAL_COLOURS(np.linspace(0, 1, 20))]
    assert min((luminance(ground) + 0.05) / 0.05 for ground in grounds) > 7  # black letters; 7 is WCAG's AAA


@pytest.mark.parametrize("T", [1, 11, 300])
def test_surprisal_and_entropy_along_the_text(T):
    of = probabilities((TEXTS * T)[:T])
    axes = along_text(of).axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], of.surprisal)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), of.entropy)
    assert axes.get_title() == f"perplexity {of.perplexity:,.1f}, tokens: {T}"
    assert image(axes.figure, ".png").startswith(b"\x89PNG")


def test_ranks_are_counted_by_class():
    figure = rank_histogram(probabilities(["a"] * 8, ranks=[1, 3, 10, 11, 1000, 1000, 1001, 50256]))
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == [37.5, 12.5, 25, 25]
    assert [text.get_text() for text in axes.texts] == ["37.5%\n3", "12.5%\n1", "25.0%\n2", "25.0%\n2"]
    assert axes.get_title() == "tokens: 8, median rank 506"
    assert image(figure, ".png").startswith(b"\x89PNG")


def test_there_is_no_such_colouring():
    with pytest.raises(InputError, match="by is 'entropy'; it must be surprisal or rank"):
        text_picture(probabilities(["a"]), "entropy")
