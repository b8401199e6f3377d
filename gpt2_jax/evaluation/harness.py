"""The adapter to EleutherAI's lm-evaluation-harness: its tasks, on a model of ours. Needs the extra `eval`.

    python -m gpt2_jax.evaluation.harness run --model gpt2_jax --model_args path=runs/mine,step=best --tasks piqa

is the harness's own command, with all of its options. Importing this module registers the model as "gpt2_jax".
"""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows

from gpt2_jax.errors import InputError, suggest
from gpt2_jax.evaluation.logprobs import spread
from gpt2_jax.evaluation.scoring import score
from gpt2_jax.generation import batches
from gpt2_jax.generation.options import Options
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.pretrained import load

NEW_TOKENS = 256  # where a task does not say how many
# Its names that are not ours, and ours for them.
RENAMED = {"max_gen_toks": "max_new_tokens", "max_tokens": "max_new_tokens", "until": "stop_strings"}


@register_model("gpt2_jax")
class Harness(TemplateLM):
    """A model for the harness: `lm_eval.simple_evaluate(model=Harness(lm), tasks=[...])`.

    Args:
      lm: a model that is open; or None.
      path, step, revision, tokenizer, dtype: of `gpt2_jax.load`, what to open instead.
      batch_size: sequences that run together.
      max_batch_size: refused; `batch_size` is what is taken.
      device: what its command gives to every model, "cuda:0" unless told otherwise; here JAX's devices are used.

    Raises:
      InputError: neither or both of `lm` and `path`, or a batch size that is no number.
    """

    def __init__(
        self,
        lm: LanguageModel | None = None,
        *,
        path: str | None = None,
        step: int | str | None = None,
        revision: str | None = None,
        tokenizer: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        if (lm is None) == (path is None):
            raise InputError("give either a model or its path (--model_args path=runs/mine)")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size is {batch_size!r}; it must be a number of at least 1 (--batch_size 8)")
        if max_batch_size is not None:
            raise InputError(f"max_batch_size is {max_batch_size}; leave it out: batch_size is what is taken")
        self.lm = load(path, step=step, revision=revision, tokenizer=tokenizer, dtype=dtype) if lm is None else lm
        self.spread = spread(self.lm)
        self.batch_size = int(batch_size)

    @property
    def eot_token_id(self) -> int:
        """The id before a text and at its end."""
        return self.lm.tokenizer.end_of_text

    @property
    def max_length(self) -> int:
        """The model's context."""
        return self.lm.config.n_positions

    @property
    def tokenizer_name(self) -> str:
        """What tells its cache of requests that this tokenizer is another."""
        return f"gpt2_jax-{len(self.lm.tokenizer)}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; GPT-2 adds no special tokens, whatever is asked for."""
        return self.lm.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: list, **kwargs: Any) -> list[tuple[float, bool]]:
        """(text, context ids, continuation ids) -> (log-probability, whether greedy)."""
        scored = score(self.spread, [(context, rest) for _, context, rest in requests], batch_size=self.batch_size)
        results = [(one.total, one.greedy) for one in scored]
        for (text, _, _), result in zip(requests, results):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, in windows that do not overlap; the last has a full context."""
        pairs, owners = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for context, rest in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                pairs.append((context[: len(context) - len(rest) + 1], rest))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, one in zip(owners, score(self.spread, pairs, batch_size=self.batch_size)):
            totals[owner] += one.total
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, greedy unless the task samples."""
        results = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(place)
        for places in groups.values():
            options = generation_options(requests[places[0]].args[1])
            room = self.max_length - options["max_new_tokens"]
            if room < 1:
                raise InputError(
                    f"a task asks for {options['max_new_tokens']} new tokens and the model's context is "
                    f"{self.max_length}; lower it (--gen_kwargs max_gen_toks={self.max_length // 2})"
                )
            seed = options.pop("seed", 0)
            prompts = [(self.tok_encode(requests[i].args[0]) or [self.eot_token_id])[-room:] for i in places]
            drawn = batches.generate(self.lm, [(prompt, seed) for prompt in prompts], self.batch_size, **options)
            for place, result in zip(places, drawn):
                results[place] = result.completion
                self.cache_hook.add_partial("generate_until", requests[place].args, result.completion)
        return results


def generation_options(of_task: dict[str, Any]) -> dict[str, Any]:
    """The options of `lm.generate` for those of a task.

    Raises:
      InputError: one that is not known here.
    """
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS}
    sample = bool(of_task.get("do_sample", float(of_task.get("temperature") or 0) > 0))
    known = [field.name for field in Options.fields()]
    for name, value in of_task.items():
        name = RENAMED.get(name, name)
        if name == "do_sample" or value is None:
            continue
        if name not in known:
            raise InputError(f"a task generates with {name}={value!r}, which is no option; {suggest(name, known)}")
        options[name] = value
    if "stop_strings" in options:
        stops = options["stop_strings"]
        options["stop_strings"] = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
    if not sample:
        options["temperature"] = 0
        for name in ("top_k", "top_p", "min_p"):  # which a greedy draw has no use for
            options.pop(name, None)
    return options


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
