"""What is drawn is what was measured; warnings, of missing glyphs among them, are errors."""

import numpy as np
import pytest

from gpt2_jax import InputError
from gpt2_jax.analysis import attention_plots
from gpt2_jax.analysis.attention_maps import STATISTICS, AttentionMap, HeadStatistics
from gpt2_jax.analysis.attention_plots import head_map, layer_grid, statistics_grid
from gpt2_jax.analysis.plots import image

HOSTILE = ["␣$x$", "⏎␣␣␣␣", "⇥", r"\xe2", "⟨ESC⟩", "中", "😀", "_{a", "%", "<b>", "◌\u0301", "a_long_name_of_a_token"]


def attention(T, H=3):
    rng = np.random.default_rng(T)
    weights = np.tril(rng.random((H, T, T)).astype(np.float32))
    return AttentionMap(1, weights / weights.sum(-1, keepdims=True), np.arange(T), (HOSTILE * T)[:T])


def statistics(L, H, induction_of_text=False):
    values = np.random.default_rng(0).random((5, L, H)).astype(np.float32)
    return HeadStatistics(*values, induction_of_text=induction_of_text, tokens=1234)


@pytest.mark.parametrize("T", [1, 12, 100])
def test_a_head_is_drawn_token_by_token(T):
    of = attention(T)
    figure = head_map(of, 2)
    axes = figure.axes[0]
    drawn = axes.images[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(drawn, 0), of.weights[2])
    assert drawn.mask.sum() == T * (T - 1) / 2  # what a token cannot see is blank
    assert axes.get_title() == "layer 1, head 2" and image(figure, ".png").startswith(b"\x89PNG")


def test_labels_are_the_tokens_and_of_many_some_with_their_places():
    few, many = (head_map(attention(T), 0).axes[0] for T in (12, 100))
    for ticks in (few.get_xticklabels(), few.get_yticklabels()):
        drawn = [*HOSTILE[:5], r"\u4e2d", r"\U0001f600", *HOSTILE[7:11], "a_long_name_o…"]
        assert [tick.get_text() for tick in ticks] == drawn
        assert not any(tick.get_parse_math() for tick in ticks)
    ticks = [tick.get_text() for tick in many.get_xticklabels()]
    assert len(ticks) == 50 and ticks[:2] == ["0 ␣$x$", "2 ⇥"] and many.get_xticks()[-1] == 98


def test_a_layer_is_a_grid_of_its_heads():
    of = attention(20, H=5)
    figure = layer_grid(of)
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in maps] == [f"head {i}" for i in range(5)]
    for axes, weights in zip(maps, of.weights):
        np.testing.assert_array_equal(np.ma.filled(axes.images[0].get_array(), 0), weights)
    assert image(figure, ".svg").startswith(b"<?xml")
    assert [axes.xaxis.get_tick_params()["labelbottom"] for axes in maps] == [False, False, True, True, True]


def test_of_a_long_text_a_pixel_is_the_largest_weight_of_several():
    of = attention(500, H=1)
    axes = next(axes for axes in layer_grid(of).axes if axes.images)
    drawn = axes.images[0].get_array()
    assert drawn.shape == (167, 167) and axes.get_xlim() == (-0.5, 499.5)
    assert drawn[5, 2] == of.weights[0, 15:18, 6:9].max() and drawn[166, 166] == of.weights[0, 498:, 498:].max()


def test_statistics_are_maps_of_layers_and_heads():
    of = statistics(3, 4)
    figure = statistics_grid(of)
    maps = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    for name, title in STATISTICS.items():
        np.testing.assert_array_equal(maps[title].images[0].get_array(), getattr(of, name))
        written = [text.get_text() for text in maps[title].texts]
        assert written == [f"{value:.2f}".removeprefix("0") for value in getattr(of, name).ravel()]
    assert image(figure, ".png").startswith(b"\x89PNG")
    explained = [axes.texts[0].get_text() for axes in figure.axes if axes.texts and not axes.images]
    assert "Means over 1,234 tokens." in explained[0] and "random tokens, repeated" in explained[0]
    of_text = statistics_grid(statistics(12, 20, induction_of_text=True))
    explained = [axes.texts[0].get_text() for axes in of_text.axes if axes.texts and not axes.images]
    assert "tokens that come again" in explained[0]
    assert not any(axes.texts for axes in of_text.axes if axes.images)  # too many to be read


def test_large_numbers_have_no_fractions():
    distances = np.array([[0.25, 10.0], [99.5, 250.4]], np.float32)
    axes = attention_plots.Picture(3, 3).add_subplot()
    attention_plots._write_numbers(axes, axes.imshow(distances), distances)
    assert [text.get_text() for text in axes.texts] == ["0", "10", "100", "250"]


def test_there_is_no_such_head():
    for head in (3, -1, 0.5):
        with pytest.raises(InputError, match=f"head is {head}; it must be from 0 to 2"):
            head_map(attention(4), head)
