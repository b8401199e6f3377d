"""The sections of a run's report: what is known of the run in, HTML out."""

import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

import jax
from matplotlib.figure import Figure

from gpt2_jax.analysis import attention_plots, coloured_text, diversity_plots, pages, probability_plots, quality, sweep
from gpt2_jax.analysis.attention_maps import attention_of, head_statistics
from gpt2_jax.analysis.curves import curves
from gpt2_jax.analysis.probabilities import token_probabilities
from gpt2_jax.analysis.run_folder import READ, Material
from gpt2_jax.analysis.side_by_side import grid, printable, side_by_side
from gpt2_jax.config import Config, meanings
from gpt2_jax.errors import InputError
from gpt2_jax.evaluation import report as evaluation_report
from gpt2_jax.evaluation.perplexity import perplexity
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import model_of_shapes, num_parameters, parameter_names

SAMPLES = 12  # texts over time at most
ATTENDED = 48  # tokens of the text whose attention is drawn
SWEEP = {"temperature": (0.3, 0.7, 1.0, 1.3), "top_k": (10, 40), "top_p": (0.8, 0.95), "repetition_penalty": (1.2,)}
NEW_TOKENS = 50


def overview(material: Material) -> str:
    """The run in a few lines."""
    run, rows = material.run, {}
    config = run.config
    sizes = {name: config.get("model", {}).get(name) for name in ("n_layer", "n_head", "n_embd", "n_positions")}
    if isinstance(material.model, LanguageModel):
        rows["Checkpoint"] = f"step {material.step:,}"
        rows["Parameters"] = f"{num_parameters(material.lm.model):,}"
    rows["Sizes"] = ", ".join(f"{name} {value}" for name, value in sizes.items() if value is not None)
    if start := config.get("finetune", {}).get("start"):
        rank = config.get("lora", {}).get("rank")
        rows["Started from"] = f"{start}, with adapters of rank {rank}" if rank else start
    trained, validated = run.curves.get("train_loss", {}), run.curves.get("val_loss", {})
    training = config.get("training", {})
    if trained:
        done, length = max(trained), training.get("sequence_length") or sizes["n_positions"]
        rows["Steps"] = f"{done:,} of {training.get('steps', 0):,}"
        rows["Tokens"] = f"{done * training.get('batch_size', 0) * (length or 0):,}"
    if validated:
        best = min(validated, key=validated.__getitem__)
        loss = validated[best]
        rows["Lowest validation loss"] = f"{loss:.4f} nats a token, perplexity {math.exp(loss):,.2f}, at step {best:,}"
    shares = {name.removeprefix("time/"): points for name, points in run.curves.items() if name.startswith("time/")}
    if shares:
        parts = (f"{name.replace('_', ' ')} {list(points.values())[-1]:.1%}" for name, points in shares.items())
        rows["Time"] = ", ".join(parts).replace("%", " %")
    return pages.render("report_pairs.html", pairs=rows)


def configuration(material: Material) -> str:
    """What is not at its default, with its meaning; then everything."""
    texts = {name: meanings(kind) for name, kind in get_type_hints(Config).items()}
    spelled = lambda value: json.dumps(value, ensure_ascii=False)
    changed = []
    for option, value, default in material.run.changed:
        group, name = option.split(".", 1)
        meaning = texts.get(group, {}).get(name, "").replace("`", "")
        changed.append((option, spelled(value), spelled(default), meaning))
    groups = {group: {n: spelled(v) for n, v in options.items()} for group, options in material.run.config.items()}
    return pages.render("report_config.html", changed=changed, groups=groups)


def parameters(material: Material) -> str:
    """The arrays of the model, GPT-2's layers stacked as they are trained; those that read images after them."""
    config, own = material.lm.config, material.lm.model
    arrays = {}
    for model in (model_of_shapes(config, stacked=True), own):
        known = {name.split(".")[0] for name in arrays}
        named = zip(jax.tree.leaves(parameter_names(model)), jax.tree.leaves(model))
        arrays |= {name: x.shape for name, x in named if name.split(".")[0] not in known}
    rows = [(name, " x ".join(map(str, shape)), math.prod(shape)) for name, shape in arrays.items()]
    return pages.render(
        "report_parameters.html", rows=rows, total=num_parameters(own), stored=sum(numbers for *_, numbers in rows),
        padded=config.padded_vocab_size, vocab_size=config.vocab_size,
    )  # fmt: skip


def training_curves(material: Material) -> str:
    """As scripts/plot.py --picture=curves."""
    return _figures((curves(material.run.workdir), "Loss, perplexity, learning rate, gradient norm and speed."))


def samples_over_time(material: Material) -> str:
    """What the run wrote of the same prompt at its steps."""
    found = list(material.run.samples.items())
    if not found:
        raise InputError("the run kept no samples; training.sample_tokens says how long they are, 0 makes none")
    count = min(SAMPLES, len(found))
    chosen = [found[round(i * (len(found) - 1) / max(1, count - 1))] for i in range(count)]
    samples = [(step, printable(text)) for step, text in chosen]
    return pages.render("report_samples.html", samples=samples, all=len(found))


def attention(material: Material) -> str:
    """What each head is, those that are most of their kind, and all heads of some layers."""
    lm, (text, source) = material.lm, material.text
    text = material.beginning(text, ATTENDED)
    statistics = head_statistics(lm, text)
    made = [(attention_plots.statistics_grid(statistics), f"What kind of head each is. {source}")]
    for name, what in (("previous_token", "the previous token"), ("induction", "what followed before")):
        scores = getattr(statistics, name)
        layer, head = divmod(int(scores.argmax()), scores.shape[1])
        drawn = attention_plots.head_map(attention_of(lm, text, layer), head)
        made.append((drawn, f"Layer {layer}, head {head} attends to {what} most: a score of {scores.max():.2f}."))
    layers = lm.config.n_layer
    for layer in sorted({0, layers // 2, layers - 1}):
        made.append((attention_plots.layer_grid(attention_of(lm, text, layer)), f"All heads of layer {layer}."))
    return _figures(*made)


def probabilities(material: Material) -> str:
    """A text coloured by what the model expected of it, with the alternatives."""
    text, source = material.text
    ids = material.lm.tokenizer.encode(text)[:READ]
    found = token_probabilities(material.lm, ids)
    note = f'<p class="note">{source}</p>'
    histogram = (probability_plots.rank_histogram(found), "How often the text went on as the model expected (GLTR).")
    return note + coloured_text.fragment(found) + _figures(histogram)


def diversity(material: Material) -> str:
    """A sweep's pictures and table; without one a small sweep is made."""
    if material.sweep is not None:
        return _of_sweep(sweep.read(material.sweep), f"Of the sweep in {material.sweep}.")
    lm, ends = material.lm, []
    wanted = sweep.Sweep(**SWEEP, max_new_tokens=(min(NEW_TOKENS, lm.config.n_positions // 2),))

    def tell(line: str) -> None:
        material.tell(f"  {line}")
        ends.append(time.monotonic())
        if ends[-1] - ends[0] > material.seconds:  # the first compiles
            raise TimeoutError

    with tempfile.TemporaryDirectory() as folder:
        cut = ""
        try:
            sweep.run(lm, material.prompts, wanted, Path(folder), tell=tell)
        except TimeoutError:
            cut = f" It ended after {material.seconds:g} seconds; --seconds gives it more."
        results = sweep.read(Path(folder))
    texts = len(material.prompts) * wanted.samples
    return _of_sweep(results, f"A small sweep, {texts} texts of each setting; settings: {len(results)}.{cut}")


def completions(material: Material) -> str:
    """The first prompts under a few temperatures and nuclei."""
    lm = material.lm
    options = {"max_new_tokens": min(NEW_TOKENS, lm.config.n_positions // 2)}
    rows, columns = grid(temperature=(0.5, 0.8, 1.1)), grid(top_p=(0.8, 0.95, 1.0))
    return side_by_side(lm, material.prompts[:2], rows, columns, **options)._repr_html_()


def evaluation(material: Material) -> str:
    """What the run measured of its validation split, such text evaluated with the checkpoint, and other reports."""
    run, rows = material.run, []
    for name, losses in run.curves.items():
        if name == "val_loss" or name.startswith("val_loss/"):
            step, loss = list(losses.items())[-1]
            bits = run.curves.get("val_bits_per_byte", {}).get(step) if name == "val_loss" else None
            source = name.removeprefix("val_loss").removeprefix("/")
            rows.append((f"{source or 'all'}", step, loss, math.exp(loss), bits))
    measured, why = {}, ""
    try:
        measured = _measured(material) if material.tokens else {}
    except InputError as error:
        why = str(error)
    reports = []
    for path in material.evaluations:
        found = evaluation_report.read(path)
        if not found:
            raise InputError(f"{path} has no report of an evaluation; give a file or folder of scripts/evaluate.py")
        reports += [(evaluation_report.name_of(one["model"]), "\n".join(evaluation_report.lines(one))) for one in found]
    return pages.render("report_evaluation.html", rows=rows, measured=measured, why=why, reports=reports)


def _measured(material: Material) -> dict[str, str]:
    """The perplexity of validation text, in windows of the whole context."""
    found = perplexity(material.lm, material.held_out)
    (per_token, error), (bits, bits_error) = found.per(found.tokens), found.bits_per(found.bytes)
    return {
        "Perplexity per token": f"{per_token:,.2f} ± {error:,.2f}",
        "Bits per byte": f"{bits:.4f} ± {bits_error:.4f}",
        "Text": f"documents: {found.documents:,}, tokens: {found.tokens:,}, bytes: {found.bytes:,}",
    }


def _of_sweep(results: Sequence[sweep.Result], note: str) -> str:
    rows = {result.title: result.metrics for result in results}
    names = quality.columns(list(rows.values()))
    shown = lambda row, name: "" if row.get(name) is None else format(row[name], quality.FORMATS[name])
    table = [(title, [shown(row, name) for name in names]) for title, row in rows.items()]
    figures = [(diversity_plots.quality_diversity(results), "Quality against variety, a point a setting.")]
    if len(results) > 1:
        figures.insert(0, (diversity_plots.diversity(results), "What each factor does to the texts."))
    return pages.render("report_sweep.html", note=note, names=names, table=table) + _figures(*figures)


def _figures(*figures: tuple[Figure, str]) -> str:
    return pages.render("report_figures.html", figures=[(pages.embedded(figure), text) for figure, text in figures])
