"""A trained model as Python users hold it: parameters, tokenizer and config, with `generate` and `stream`."""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from gpt2_jax import lora
from gpt2_jax.errors import InputError
from gpt2_jax.generation import beam, contrastive, prompting, sampler, stopping
from gpt2_jax.generation.options import DEFAULTS, Options, parse
from gpt2_jax.generation.pausing import Pausing, finish
from gpt2_jax.generation.request import Prompt, Request, make_request
from gpt2_jax.model import GPT2, unstack
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer import Tokenizer

Text = str | prompting.FilledPrompt
TIMED_CHUNK = 8  # new tokens between two looks at the clock
STOP_REASONS = {sampler.AT_END_TOKEN: "end_token", sampler.AT_STOP_STRING: "stop_string"}


@dataclasses.dataclass(frozen=True)
class Generation:
    """A continued prompt; `print` shows its text.

    Attributes:
      text: the prompt and what was added.
      completion: what was added, alone, up to a stop string.
      tokens: ids of both, int32 [length]; without the end token that stopped it, with those that spell a stop string.
      stop_reason: "end_token", "stop_string", "length" (max_new_tokens were added) or "time" (max_time was over).
      logprobs: float32 [new tokens], log-probabilities of the new tokens under the model itself; if asked for.
      top_tokens, top_logprobs: int32 and float32 [new tokens, n], the n most probable in their place; if asked for.
      score: what candidates are ranked by: the log-probability, end token included, over a power of the length (beam
        search), or the mean (`best_of`); else None.
    """

    text: str
    completion: str
    tokens: np.ndarray
    stop_reason: Literal["end_token", "stop_string", "length", "time"]
    logprobs: np.ndarray | None = None
    top_tokens: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None
    score: float | None = None

    def __str__(self) -> str:
        return self.text


class LanguageModel:
    """A model that speaks.

    Attributes:
      model: `lm.model(tokens int [B, T]) -> logits float32 [B, T, V]`; its blocks are unstacked and adapters merged. Or
        a `mixing.Mix`.
      tokenizer: text to ids and back.
      config: the model's `GPT2Config`.
    """

    def __init__(self, model: GPT2, tokenizer: Tokenizer):
        self.model = unstack(lora.merge(model)) if isinstance(model, GPT2) else model
        self.tokenizer = tokenizer
        self.config: GPT2Config = model.config

    def generate(self, prompt: Prompt | Sequence[Prompt] = "", **options: Any) -> Generation | list[Generation]:
        """Continues one prompt or several, of any lengths, in one jitted loop.

        Args:
          prompt: text or token ids, or a list of such; "" starts from end-of-text. Each prompt of a list gives what it
            gives alone: for several texts of one prompt ask for `num_return_sequences`, or give a list of seeds.
          **options: the fields of `gpt2_jax.generation.options.Options`, with their meanings and defaults.

        Returns:
          A `Generation`; a list, prompt by prompt, for a list of prompts or several texts each.

        Raises:
          InputError: an unknown option, a value out of range, options that contradict each other, ids outside the
            vocabulary, or a prompt that does not fit the context.
        """
        settings = parse(options)
        several = not isinstance(prompt, str) and any(isinstance(p, str) or np.ndim(p) > 0 for p in prompt)
        request = self._request(prompt if several else [prompt], settings)
        results = finish(self.run(request))
        return results if several or settings.num_return_sequences > 1 else results[0]

    def stream(self, prompt: Prompt = "", **options: Any) -> Iterator[str]:
        """Yields the completion piece by piece, as soon as each is final; the pieces joined are `.completion`.

        Arguments and errors are those of `generate`, for one prompt, one text and no search.
        """
        settings = parse(options)
        for name in ("num_return_sequences", "best_of", "num_beams", "penalty_alpha", "logprobs"):
            if getattr(settings, name) != DEFAULTS[name]:
                raise InputError(f"{name} is {getattr(settings, name)!r}; a stream has one text, known to its end only")
        request = self._request([prompt], settings)
        decoder, waiting = self.tokenizer.stream_decoder(), ""
        shown = len(request.prompts[0])
        for state in self.states(request, chunk=1):
            tokens = np.asarray(state.history.tokens)[0, shown : int(state.history.lengths[0])]
            shown += len(tokens)
            waiting += decoder.put([token for token in tokens.tolist() if token not in request.end_tokens])
            if int(state.ended[0]) == sampler.AT_STOP_STRING:
                break
            final = len(waiting) - stopping.held_back(waiting, settings.stop_strings)
            if final:
                yield waiting[:final]
            waiting = waiting[final:]
        if piece := stopping.cut(waiting + decoder.end(), settings.stop_strings):
            yield piece

    def choose(
        self, prompt: Text | Sequence[Text], answers: Sequence[str] | Sequence[Sequence[str]], **options: Any
    ) -> prompting.Choice | list[prompting.Choice]:
        """The most probable of given answers, by their log-probability after the prompt (Brown et al., 2020).

        Args:
          prompt: text or what `FewShot.build` gives, or a list of such.
          answers: texts, the same for each prompt of a list, or a list of texts a prompt.
          **options: `normalise` ("token", "sum" or "unconditional"), `unconditional` and `batch_size` of
            `gpt2_jax.generation.prompting.choose`, with their meanings and errors.

        Returns:
          A `Choice`, or one for each prompt of a list.
        """
        several = not isinstance(prompt, Text)
        prompts = list(prompt) if several else [prompt]
        shared = not several or isinstance(answers, str) or all(isinstance(answer, str) for answer in answers)
        found = prompting.choose(self, prompts, [answers] * len(prompts) if shared else answers, **options)
        return found if several else found[0]

    def compile(self, *, batch_size: int = 1, prompt_length: int = 1, **options: Any) -> None:
        """Compiles what `generate(prompts, **options)` will run, for prompts up to `prompt_length` tokens long.

        Other values of the options and other prompts in the same bucket (the next power of two) compile nothing more.
        """
        settings = parse(options)
        request = self._request([[self.tokenizer.end_of_text] * prompt_length] * batch_size, settings)
        for _ in itertools.islice(self.run(request, chunk=1), 2):
            pass

    def _request(self, prompts: Sequence[Prompt], options: Options) -> Request:
        return make_request(prompts, options, self.tokenizer, self.config)

    def run(self, request: Request, chunk: int | None = None) -> Pausing[list[Generation]]:
        """The texts of a request, prompt by prompt; pauses after every `chunk` new tokens."""
        match request.options.search:
            case "sample":
                return (yield from self._sample(request, chunk))
            case "beam":
                return (yield from self._beam_search(request, chunk))
            case "contrastive":
                return (yield from self._contrastive_search(request, chunk))

    def states(self, request: Request, chunk: int | None) -> Iterator[sampler.State]:
        """The sampler's states until all rows have ended or the time is over."""
        options = request.options
        samples = options.best_of or options.num_return_sequences
        prompts = [ids for ids in request.prompts for _ in range(samples)]
        table = None
        if options.stop_strings:
            table = stopping.stop_table(options.stop_strings, self.tokenizer, self.config.padded_vocab_size)
        rules = sampler.Rules(
            sampling=request.sampling,
            end_tokens=request.end_tokens,
            limit=np.int32(request.max_new_tokens),
            stop_table=table,
            guidance_scale=np.float32(options.guidance_scale) if request.negative else None,
        )
        alternatives = 0 if options.best_of is not None and options.logprobs is None else options.logprobs
        start = sampler.start_state(
            prompts,
            [(seed, number) for seed in request.seeds for number in range(samples)],
            request.max_new_tokens,
            negative_prompts=[ids for ids in request.negative for _ in range(samples)],
            heads=[head for heads in (request.heads, request.negative_heads) for head in heads for _ in range(samples)],
            alternatives=alternatives,
        )
        began = time.monotonic()
        for state in sampler.generate(self.model, start, rules, chunk=chunk):
            yield state
            if options.max_time is not None and time.monotonic() - began >= options.max_time:
                return

    def _sample(self, request: Request, chunk: int | None) -> Pausing[list[Generation]]:
        options = request.options
        if chunk is None and options.max_time is not None:
            chunk = TIMED_CHUNK
        for state in self.states(request, chunk):
            last = state
            yield
        history, scores = last.history, jax.tree.map(np.asarray, last.scores)
        tokens, lengths, starts = map(np.asarray, (history.tokens, history.lengths, history.prompt_lengths))
        ended = np.asarray(last.ended)
        results = []
        for row in range(len(ended)):
            new = tokens[row, starts[row] : lengths[row]]
            reason = STOP_REASONS.get(int(ended[row])) or ("length" if len(new) == request.max_new_tokens else "time")
            prompt = tokens[row, : starts[row]].tolist()
            of_row = scores and jax.tree.map(lambda x, row=row: x[row], scores)
            results.append(self.result(request, prompt, new, reason, of_row))
        if options.best_of is not None:
            results = _best(results, options.best_of, options.num_return_sequences)
        return results

    def _beam_search(self, request: Request, chunk: int | None) -> Pausing[list[Generation]]:
        options = request.options
        names = ("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping")
        found = yield from beam.search(
            self.model,
            request.prompts,
            max_new_tokens=request.max_new_tokens,
            sampling=request.sampling,
            end_tokens=request.end_tokens,
            seeds=request.seeds,
            num_return_sequences=options.num_return_sequences,
            chunk=chunk,
            **{name: getattr(options, name) for name in names},
        )
        reason = lambda text: "end_token" if text.finished else "length"
        return [
            dataclasses.replace(self.result(request, prompt, text.tokens, reason(text), None), score=text.score)
            for prompt, texts in zip(request.prompts, found)
            for text in texts
        ]

    def _contrastive_search(self, request: Request, chunk: int | None) -> Pausing[list[Generation]]:
        found = yield from contrastive.search(
            self.model,
            request.prompts,
            max_new_tokens=request.max_new_tokens,
            penalty_alpha=request.options.penalty_alpha,
            top_k=request.options.top_k,
            sampling=request.sampling,
            end_tokens=request.end_tokens,
            chunk=chunk,
        )
        ended = lambda new: "end_token" if new[-1] in request.end_tokens else "length"
        return [self.result(request, prompt, new, ended(new), None) for prompt, new in zip(request.prompts, found)]

    def result(
        self, request: Request, prompt: list[int], new: np.ndarray, reason: str, scores: sampler.Scores | None
    ) -> Generation:
        """What `prompt` and its `new` tokens, int32 [n] with an end token, are to a reader."""
        options, score, kept = request.options, None, {}
        if options.best_of is not None:
            score = float(scores.chosen[: len(new)].mean())
        new = new[:-1] if reason == "end_token" else new
        if options.logprobs is not None:
            n = len(new)
            kept = {"logprobs": scores.chosen[:n], "top_tokens": scores.top_tokens[:n], "top_logprobs": scores.top[:n]}
        completion = self.tokenizer.decode(new)
        if reason == "stop_string":
            completion = stopping.cut(completion, options.stop_strings)
            text = self.tokenizer.decode(prompt) + completion
        else:
            text = self.tokenizer.decode([*prompt, *new.tolist()])
        ids = np.concatenate([np.asarray(prompt, np.int32), new])
        return Generation(text, completion, ids, reason, score=score, **kept)


def _best(results: list[Generation], candidates: int, wanted: int) -> list[Generation]:
    """The `wanted` of highest score among each prompt's `candidates`."""
    prompts = [results[i : i + candidates] for i in range(0, len(results), candidates)]
    return [r for rows in prompts for r in sorted(rows, key=lambda r: -r.score)[:wanted]]
