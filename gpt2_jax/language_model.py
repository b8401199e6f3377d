"""A trained model as Python users hold it: parameters, tokenizer and config, with `generate` and `stream`."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from gpt2_jax import compilation_cache
from gpt2_jax.config import Config
from gpt2_jax.errors import InputError
from gpt2_jax.generation import sampler
from gpt2_jax.generation.sampling import Sampling
from gpt2_jax.model import GPT2, GPT2Config, unstack
from gpt2_jax.tokenizer import Tokenizer

Prompt = str | Sequence[int] | np.ndarray
DEFAULT_NEW_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Generation:
    """A continued prompt; `print` shows its text.

    Attributes:
      text: the prompt and what was added.
      completion: what was added, alone.
      tokens: ids of both, int32 [length]; without the end-of-text that stopped it.
      stopped: whether end-of-text came before the last token allowed.
    """

    text: str
    completion: str
    tokens: np.ndarray
    stopped: bool

    def __str__(self) -> str:
        return self.text


class LanguageModel:
    """A model that speaks.

    Attributes:
      model: `lm.model(tokens int [B, T]) -> logits float32 [B, T, V]`; its blocks are unstacked.
      tokenizer: text to ids and back.
      config: the model's `GPT2Config`.
    """

    def __init__(self, model: GPT2, tokenizer: Tokenizer):
        self.model = unstack(model)
        self.tokenizer = tokenizer
        self.config: GPT2Config = model.config

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        num_return_sequences: int = 1,
    ) -> Generation | list[Generation]:
        """Continues one prompt or several, of any lengths, in one jitted loop.

        Args:
          prompt: text or token ids, or a list of such; "" starts from end-of-text.
          max_new_tokens: at most so many are added; None is 128, or what the context leaves.
          temperature: 0 takes the most probable token each time; 1 draws from the model's own distribution.
          top_k: draw among the k most probable tokens; 0 is off.
          top_p: draw among the most probable tokens that together reach this probability; 1 is off.
          seed: the same seed gives the same texts.
          num_return_sequences: samples a prompt.

        Returns:
          A `Generation`; a list, prompt by prompt, for a list of prompts or several samples.

        Raises:
          InputError: a setting out of range, ids outside the vocabulary, or a prompt that does not fit the context.
        """
        several = not isinstance(prompt, str) and any(isinstance(p, str) or np.ndim(p) > 0 for p in prompt)
        if num_return_sequences < 1:
            raise InputError(f"num_return_sequences is {num_return_sequences}; it must be at least 1")
        prompts = [self._encode(p) for p in (prompt if several else [prompt]) for _ in range(num_return_sequences)]
        chunks = list(self._run(prompts, max_new_tokens, Sampling(temperature, top_k, top_p), seed, chunk=None))
        tokens = np.concatenate([tokens for tokens, _ in chunks], axis=1)
        results = [self._result(ids, row) for ids, row in zip(prompts, tokens)]
        return results if several or num_return_sequences > 1 else results[0]

    def stream(
        self,
        prompt: Prompt = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yields the completion piece by piece, as soon as each is final; the pieces joined are `.completion`.

        Arguments and errors are those of `generate`, for one prompt.
        """
        ids = self._encode(prompt)
        decoder = self.tokenizer.stream_decoder()
        for tokens, _ in self._run([ids], max_new_tokens, Sampling(temperature, top_k, top_p), seed, chunk=1):
            if piece := decoder.put([token for token in tokens[0].tolist() if token != self.tokenizer.end_of_text]):
                yield piece
        if piece := decoder.end():
            yield piece

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt) or [self.tokenizer.end_of_text]
        ids = np.asarray(prompt)
        if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(
                f"a prompt is {ids.dtype}{list(ids.shape)}; it must be text or a list of integer token ids"
            )
        bad = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if bad.size:
            raise InputError(
                f"the prompt has token id {bad[0]}; ids must be from 0 to {self.config.vocab_size - 1}: encode the "
                "text with lm.tokenizer"
            )
        return ids.tolist()

    def _run(
        self, prompts: list[list[int]], max_new_tokens: int | None, sampling: Sampling, seed: int, chunk: int | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        context, longest = self.config.n_positions, max(len(prompt) for prompt in prompts)
        room = context - longest
        if room < 1:
            raise InputError(
                f"the prompt has {longest} tokens and the model's context is {context}; at most {context - 1} leave "
                "room for a new one: shorten the prompt"
            )
        if max_new_tokens is None:
            max_new_tokens = min(DEFAULT_NEW_TOKENS, room)
        if not 1 <= max_new_tokens <= room:
            raise InputError(
                f"max_new_tokens is {max_new_tokens}; after a prompt of {longest} tokens it must be from 1 to {room}, "
                f"for the model's context is {context}"
            )
        return sampler.generate(
            self.model,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            end_of_text=self.tokenizer.end_of_text,
            chunk=chunk,
        )

    def _result(self, prompt: list[int], new: np.ndarray) -> Generation:
        ends = np.flatnonzero(new == self.tokenizer.end_of_text)
        new = new[: ends[0]] if ends.size else new
        return Generation(
            text=self.tokenizer.decode([*prompt, *new.tolist()]),
            completion=self.tokenizer.decode(new.tolist()),
            tokens=np.concatenate([np.asarray(prompt, np.int32), new]),
            stopped=bool(ends.size),
        )


def load(path: str | Path, *, step: int | str | None = None) -> LanguageModel:
    """Opens a trained model.

    Args:
      path: the workdir of a training run.
      step: which checkpoint: its step, "best" (by validation loss), or None, the latest.

    Raises:
      InputError: there is nothing to load at `path`.
    """
    from gpt2_jax.training.checkpoint import Checkpoints  # Orbax takes a second to import: only when needed

    compilation_cache.enable()
    if not Path(path).is_dir():
        raise InputError(f"there is no folder {str(path)!r}; give the workdir of a training run")
    with Checkpoints(Path(path)) as checkpoints:
        step = checkpoints.find(step)
        groups, tokenizer = checkpoints.read_json(step)
        config = Config.from_dict(groups)
        # This machine's first device holds it all, whatever mesh it was trained on.
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.eval_shape(functools.partial(GPT2, config.model), jax.random.key(0))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
        return LanguageModel(checkpoints.restore_model(step, abstract), Tokenizer.from_json(tokenizer))
