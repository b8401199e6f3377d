"""Pictures of a sweep."""

import itertools
import json

import pytest
from matplotlib.text import Text

from gpt2_jax import InputError
from gpt2_jax.analysis import sweep
from gpt2_jax.analysis.diversity_plots import ALL_NAMED, diversity, frontier, quality_diversity
from gpt2_jax.analysis.sweep import PLAIN, Result, name_of


def result(perplexity, varied, self_bleu=None, judged=None, **options):
    setting = PLAIN | {"max_new_tokens": 50} | options
    figures = {"perplexity": perplexity, "distinct_1": varied / 2, "distinct_2": varied, "self_bleu": self_bleu}
    return Result(name_of(setting), setting, False, figures | {"repetition_4": 0.0, "judged_perplexity": judged}, [])


@pytest.fixture(scope="module")
def one_at_a_time():
    return [
        result(100.0, 0.8, 0.02), result(9.0, 0.3, 0.3, temperature=0.5), result(500.0, 0.9, 0.01, temperature=1.5),
        result(16.0, 0.7, 0.05, top_k=10), result(50.0, 0.8, 0.03, top_p=0.8),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def grid():
    pairs = itertools.product((0.5, 0.7, 0.9, 1.1, 1.3), (0, 5, 20, 40, 100))
    return [result(10 * t + (k or 200), 0.3 + t / 3, 0.1 - t / 20, temperature=t, top_k=k) for t, k in pairs]


def test_a_column_for_each_factor_that_varies_and_off_is_the_last_value(one_at_a_time):
    figure = diversity(one_at_a_time)
    columns = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel()}
    ticks = {name: [label.get_text() for label in axes.get_xticklabels()] for name, axes in columns.items()}
    assert ticks == {"temperature": ["0.5", "1", "1.5"], "top_k": ["10", "off"], "top_p": ["0.8", "off"]}
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left"))]
    assert titles == [
        "perplexity per token", "distinct-n (higher: more varied)", "self-BLEU (lower: more varied)",
        "repetition, seq-rep-4",
    ]  # fmt: skip
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[9.0, 100.0, 500.0]]
    assert [line.get_ydata().tolist() for line in figure.axes[1].lines] == [[16.0, 100.0]]
    assert [line.get_label() for line in figure.axes[3].lines] == ["distinct-1", "distinct-2"]
    assert figure.get_supxlabel() == ""


def test_combinations_are_thin_and_their_mean_thick(grid):
    figure = diversity(grid[:-1])  # as a sweep that was stopped: k 100 at the highest temperature is missing
    of_temperature = list(figure.axes[0].lines)
    thin = [line for line in of_temperature if line.get_linewidth() < 1]
    assert sorted(len(line.get_xdata()) for line in thin) == [4, 5, 5, 5, 5]
    (thick,) = [line for line in of_temperature if line.get_linewidth() > 1]
    assert thick.get_ydata() == pytest.approx([10 * t + (200 + 5 + 20 + 40) / 4 for t in (0.5, 0.7, 0.9, 1.1, 1.3)])
    assert figure.get_supxlabel().startswith("thin: a combination of the other factors; thick: the mean")


def names(axes):
    return [text for text in axes.texts if text.get_text()]


def test_names_are_beside_their_points_and_not_upon_another(one_at_a_time, grid):
    long = {"top_p": 0.95, "repetition_penalty": 1.1, "temperature": 0.75}
    alike = [result(10.0, 0.5, 0.1, top_k=100 + k, **long) for k in range(ALL_NAMED)]
    for results, some in ((one_at_a_time, False), (grid, True), (alike, True)):
        figure = quality_diversity(results)
        figure.draw_without_rendering()
        for axes in figure.axes:
            found = names(axes)
            boxes = [Text.get_window_extent(text) for text in found]  # without the lines that lead there
            assert found and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
            assert all(axes.get_window_extent().contains(box.x0, box.y0) for box in boxes)
            if not some:
                shown = [text.get_text() for text in found]
                assert sorted(shown) == ["T 0.5", "T 1.5", "k 10", "p 0.8", "plain"]
    unnamed = ALL_NAMED - len(names(figure.axes[0]))
    assert 0 < unnamed < ALL_NAMED
    assert figure.axes[0].get_title(loc="left") == f"{unnamed} of {ALL_NAMED} points have no room for a name"


def test_the_frontier_has_what_no_other_beats_in_both():
    points = [(0.1, 50.0), (0.2, 10.0), (0.3, 20.0), (0.05, 90.0), (0.2, 9.0), (0.1, 60.0)]
    assert frontier(points, lower=True) == [3, 0, 4]
    assert frontier(points, lower=False) == [2, 4]


def test_the_judge_is_said(one_at_a_time):
    own, judged = (quality_diversity([result(5.0, 0.5, 0.1, judged)]).axes[0].get_ylabel() for judged in (None, 7.0))
    assert own == "perplexity per token of the model itself (lower: more probable)"
    assert judged == "perplexity per token of the judge (lower: more probable)"
    assert len(quality_diversity([result(5.0, 0.5)]).axes) == 1  # one sample a prompt has no self-BLEU


def test_what_cannot_be_drawn():
    with pytest.raises(InputError, match="the sweep has no factor with two values to compare; give more, such as"):
        diversity([result(5.0, 0.5)])
    message = "the sweep has no setting with perplexity beside self_bleu or distinct_2; draw longer texts"
    with pytest.raises(InputError, match=message):
        quality_diversity([result(None, 0.5)])


def test_settings_are_read_in_their_order_and_others_refused(tmp_path):
    folder = tmp_path / "settings"
    with pytest.raises(InputError, match=r"has no settings/\*\.json; give the folder that scripts/sweep\.py wrote"):
        sweep.read(tmp_path)
    folder.mkdir()
    some = [result(1.0, 0.1, temperature=1.5, max_new_tokens=20), result(1.0, 0.1), result(1.0, 0.1, temperature=0.7)]
    for i, one in enumerate(some):
        (folder / f"{i}.json").write_text(json.dumps(vars(one)))
    assert sweep.read(tmp_path) == [some[0], some[2], some[1]]
    good = vars(some[0])
    wrong = [{"setting": {}}, {"setting": 3}, {"metrics": {"perplexity": "x"}}, {"samples": [1]}, {"name": 1}, {"x": 1}]
    for change in wrong:
        (folder / "0.json").write_text(json.dumps(good | change))
        with pytest.raises(InputError, match=r"0\.json is no setting of a sweep .*; remove it, and let scripts/sweep"):
            sweep.read(tmp_path)
