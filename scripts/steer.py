"""How far a control leads, and what it costs: a table of its strength against the kinds of the texts that come.

    python scripts/steer.py --base=runs/coded --guidance_scales=1,2,4 \\
        --references="verse: poems.jsonl; tales: stories.jsonl"
    python scripts/steer.py --base=openai-community/gpt2-large --expert=runs/positive --anti_expert=runs/negative \\
        --judge=sentiment --prompts=prompts.txt --alphas=0,1,2,4

With experts (DExperts) the strength is alpha, otherwise the scale of guidance to each control code of the model. What
kind a text is, is judged by n-grams of real texts (--references), by models of one kind each (--domain_models), or by
VADER's lexicon (--judge=sentiment; pip install 'gpt2_jax[sentiment]').
"""

import sys
from pathlib import Path

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax import json_lines
from gpt2_jax.evaluation import control, judges
from gpt2_jax.evaluation.sentiment import by_sentiment

BASE = flags.DEFINE_string("base", None, "The model: training run, folder or file of GPT-2 weights, or hub id.")
EXPERT = flags.DEFINE_string("expert", None, "A model of the same vocabulary, of wanted text.")
ANTI_EXPERT = flags.DEFINE_string("anti_expert", None, "A model of the same vocabulary, of unwanted text.")
ALPHAS = flags.DEFINE_list("alphas", ["0", "1", "2", "4"], "How far the experts lead.")
SCALES = flags.DEFINE_list("guidance_scales", ["1", "1.5", "2", "4"], "How far guidance leads; 1 is the code alone.")
CODES = flags.DEFINE_list("codes", [], "Control codes; by default all of the model's.")
JUDGE = flags.DEFINE_enum("judge", None, ["sentiment"], "A judge that needs no texts and no models.")
REFERENCES = flags.DEFINE_string("references", None, '"kind: file; ..." of real texts, .jsonl with a "text", or lines.')
DOMAIN_MODELS = flags.DEFINE_string("domain_models", None, '"kind: model; ..." of models that learnt one kind each.')
PROMPTS = flags.DEFINE_string("prompts", None, "A prompt a line, or .jsonl lines with a 'prompt'; by default none.")
SAMPLES = flags.DEFINE_integer("samples", 32, "Texts of each prompt, code and strength.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "Tokens of a text, at most.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Divides the logits.")
TOP_P = flags.DEFINE_float("top_p", 0.95, "Draw among the fewest tokens that reach this probability.")
SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same texts.")


def numbers(name: str, given: list[str]) -> list[float]:
    try:
        return list(map(float, given))
    except ValueError:
        raise gpt2_jax.InputError(f"{name} is {','.join(given)}; it must be numbers with commas") from None


def by_kind(option: str, text: str) -> dict[str, str]:
    """{"verse": "poems.jsonl"} of "verse: poems.jsonl; ..."."""
    found = {}
    for entry in text.split(";"):
        kind, _, what = (part.strip() for part in entry.partition(":"))
        if not kind or not what or kind in found:
            raise gpt2_jax.InputError(f'{option} is {text!r}; it must be of the form "kind: ...; kind: ...", each once')
        found[kind] = what
    return found


def open_judge() -> judges.Judge:
    given = [option for option in (JUDGE, REFERENCES, DOMAIN_MODELS) if option.value]
    if len(given) != 1:
        raise gpt2_jax.InputError(f"{len(given)} judges are given; give --judge, --references or --domain_models")
    if JUDGE.value:
        return by_sentiment
    if DOMAIN_MODELS.value:
        models = by_kind("domain_models", DOMAIN_MODELS.value)
        return judges.by_domain_models({kind: gpt2_jax.load(path) for kind, path in models.items()})
    files = by_kind("references", REFERENCES.value)
    judge, real = control.judge_of_references({kind: json_lines.texts(Path(f), "text") for kind, f in files.items()})
    print("Of real texts the judge finds", ", ".join(f"{real.share(k, k):.1%} of {k}" for k in real.kinds), flush=True)
    return judge


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; a list has commas and no spaces: --alphas=0,1,2")
    logging.set_verbosity(logging.ERROR)
    try:
        options = {
            "prompts": json_lines.texts(Path(PROMPTS.value), "prompt") if PROMPTS.value else [""],
            "samples": SAMPLES.value, "max_new_tokens": MAX_NEW_TOKENS.value, "temperature": TEMPERATURE.value,
            "top_p": TOP_P.value, "seed": SEED.value,
        }  # fmt: skip
        alphas, scales = numbers("alphas", ALPHAS.value), numbers("guidance_scales", SCALES.value)
        judge, model = open_judge(), gpt2_jax.load(BASE.value)
        experts = {"expert": EXPERT.value, "anti_expert": ANTI_EXPERT.value}
        experts = {name: gpt2_jax.load(path) for name, path in experts.items() if path}
        if experts:
            rows = control.expert_curve(model, judge, alphas=alphas, **experts, **options)
        else:
            rows = control.guidance_curve(model, judge, codes=CODES.value, scales=scales, **options)
        print(control.table(list(rows)), end="")
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("base")
    app.run(main)
