"""Curves of training from metrics.jsonl."""

import json
import math

import pytest

from gpt2_jax import InputError
from gpt2_jax.analysis.curves import HIGHEST, SMOOTHED, curves, perplexity_curve, read


def write(folder, lines):
    folder.mkdir(exist_ok=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def run(folder, steps=5, every=10, skipped=0):
    """A run whose loss is 4 and falls by 0.01 a line, with two validations."""
    lines = [{"step": 0, "val_loss": 5.0}, {"step": 0, "sample": "text"}]
    for i in range(steps):
        values = {"train_loss": 4 - 0.01 * i, "grad_norm": 1.0 + i % 2, "learning_rate": 1e-3}
        lines.append({"step": 1 + i * every, **values, "tokens_per_second": 1e4, "skipped_steps": skipped * (i > 2)})
    return write(folder, [*lines, {"step": 1 + steps * every, "val_loss": 3.5}])


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def legend(figure):
    return [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]


def test_damaged_lines_are_left_out_and_of_a_step_that_comes_again_the_later_wins(tmp_path):
    good = [{"step": 20, "train_loss": 3.0}, {"step": 30, "train_loss": 2.5}, {"step": 10, "train_loss": 4.0}]
    bad = ["[1]\n", "{\n", "\x00\n", '{"step": true, "train_loss": 1.0}\n', '{"step": -1, "train_loss": 1.0}\n']
    bad += [f'{{"step": 40, "train_loss": {value}}}\n' for value in ('"x"', "NaN", "Infinity", HIGHEST, "-1e9", "true")]
    bad += [f'{{"step": {2**53}, "train_loss": 1.0}}\n', '{"step": 41, "grad_norm": 1e301}\n', '{"train_loss": 1.0}\n']
    again = {"step": 20, "train_loss": 2.75, "val_loss": 2}
    folder = write(tmp_path / "run", [*good, *bad, again, '{"step": 50, "train_loss": 1.'])
    found = read(folder / "metrics.jsonl")
    assert found == {"train_loss": {10: 4.0, 20: 2.75, 30: 2.5}, "val_loss": {20: 2.0}}
    assert list(found["train_loss"]) == [10, 20, 30]


def test_a_short_run_is_drawn_as_it_is(tmp_path):
    figure = curves(run(tmp_path / "_short$run$"))
    loss, perplexity = (panels(figure)[name] for name in ("loss, nats per token", "perplexity per token"))
    (trained, validated), (trained_too, _) = loss.lines, perplexity.lines
    assert trained.get_xydata().tolist() == [[1 + 10 * i, 4 - 0.01 * i] for i in range(5)]
    assert validated.get_xydata().tolist() == [[0, 5.0], [51, 3.5]]
    assert trained_too.get_ydata() == pytest.approx([math.exp(4 - 0.01 * i) for i in range(5)])
    assert legend(figure) == [r"_short\$run\$: lowest validation loss 3.500", "training", "validation"]
    assert set(panels(figure)) > {"learning rate", "gradient norm, before clipping"}
    assert len(panels(figure)["training speed, tokens per second"].lines) == 1
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_steps_are_whole_numbers_also_where_there_are_few(tmp_path):
    loss = panels(curves(run(tmp_path / "run", steps=2, every=1)))["loss, nats per token"]
    assert len(loss.get_xticks()) >= 3 and all(tick == int(tick) for tick in loss.get_xticks())


def test_means_are_said_and_are_those_of_the_steps_around(tmp_path):
    steps = 2 * SMOOTHED
    figure = curves([run(tmp_path / "a", steps), run(tmp_path / "b")])
    norm = panels(figure)["gradient norm, before clipping"].lines
    assert [len(line.get_xdata()) for line in norm] == [steps, steps, 5]
    assert norm[0].get_ydata()[:4].tolist() == [1, 2, 1, 2]
    window = round(0.05 * (1 + 10 * steps))  # the largest step is that of the last validation
    expected = sum(1.0 + i % 2 for i in range(60 - 3, 60 + 4)) / 7
    assert window == 60 and norm[1].get_ydata()[60] == pytest.approx(expected)
    assert legend(figure)[2:] == [
        "training, each line of the metrics", "its mean over the 60 steps around", "validation",
    ]  # fmt: skip
    colours = [line.get_color() for line in norm]
    assert colours[0] == colours[1] != colours[2]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    folders = [run(tmp_path / "one" / "run"), run(tmp_path / "two" / "run")]
    assert [label.split(": ")[0] for label in legend(curves(folders))[:2]] == [str(folder) for folder in folders]


def test_skipped_steps_are_marked_where_their_number_rises(tmp_path):
    figure = curves([run(tmp_path / "a"), run(tmp_path / "b", skipped=2)])
    marks = [line for line in panels(figure)["loss, nats per token"].lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in marks] == [[31]]
    assert legend(figure)[-1] == "steps were skipped"


def test_a_wide_range_of_gradient_norms_is_logarithmic(tmp_path):
    folder = run(tmp_path / "a")
    title = "gradient norm, before clipping"
    assert panels(curves(folder))[title].get_yscale() == "linear"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 90, "grad_norm": 500}\n')
    assert panels(curves(folder))[title].get_yscale() == "log"


def test_what_cannot_be_compared(tmp_path):
    a = run(tmp_path / "a")
    with pytest.raises(InputError, match="the number of runs is 0; it must be from 1 to 7"):
        curves([])
    with pytest.raises(InputError, match="the number of runs is 8; it must be from 1 to 7"):
        curves([tmp_path / str(i) for i in range(8)])
    with pytest.raises(InputError, match=r"workdir is .*; it must be each run once"):
        curves([a, a])
    with pytest.raises(InputError, match=r"b/metrics.jsonl cannot be read \(No such file or directory\); check it and"):
        curves([a, tmp_path / "b"])
    empty = write(tmp_path / "empty", [{"step": 0, "sample": "text"}])
    message = r"empty/metrics.jsonl holds no losses; give the folder of a run that has trained"
    with pytest.raises(InputError, match=message):
        curves(empty)


def test_the_picture_that_training_leaves(tmp_path):
    perplexity_curve(run(tmp_path / "a") / "metrics.jsonl", tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    perplexity_curve(write(tmp_path / "b", []) / "metrics.jsonl", tmp_path / "b.png")  # no line yet
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
