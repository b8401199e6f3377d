"""What a training run left in its folder, read for people: config, samples, texts that it never learnt from."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax import json_files
from gpt2_jax.analysis.curves import Points, read
from gpt2_jax.config import default_config
from gpt2_jax.errors import InputError
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.tokenizer import Tokenizer

READ = 200  # tokens of the text whose probabilities are shown
PROMPTS, PROMPT_TOKENS = 4, 12  # of a sweep


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run's folder, `workdir`; each of its parts may be missing, and says so when it is asked for."""

    workdir: Path

    @cached_property
    def config(self) -> dict[str, dict[str, Any]]:
        """The groups of options of the run's config.json.

        Raises:
          InputError: the file cannot be read, or holds no groups.
        """
        file, advice = self.workdir / "config.json", "give the folder of a training run"
        groups = json_files.read(file, "is no config of a run", advice)
        if not all(isinstance(group, dict) for group in groups.values()):
            raise InputError(f"{file} is no config of a run (it has options outside of groups); {advice}")
        return groups

    @cached_property
    def changed(self) -> list[tuple[str, Any, Any]]:
        """(option, its value, its default) of the config's options that are not at their default; None if it has none.

        The size of the vocabulary is the tokenizer's by default.
        """
        defaults = {group: options.to_dict() for group, options in default_config().items()}
        defaults["model"]["vocab_size"] = self.config.get("model", {}).get("vocab_size")
        return [
            (f"{group}.{name}", value, defaults.get(group, {}).get(name))
            for group, options in self.config.items()
            for name, value in options.items()
            if value != defaults.get(group, {}).get(name)
        ]

    @cached_property
    def curves(self) -> dict[str, Points]:
        """The curves in its metrics, see `curves.read`.

        Raises:
          InputError: they cannot be read.
        """
        return read(self.workdir / "metrics.jsonl")

    @cached_property
    def samples(self) -> dict[int, str]:
        """What the model wrote at which step; of a step that comes again the later text.

        Raises:
          InputError: the metrics cannot be read.
        """
        found = {}
        for _, values in json_files.lines(self.workdir / "metrics.jsonl"):
            step, text = values.get("step"), values.get("sample")
            if type(step) is int and step >= 0 and isinstance(text, str):
                found[step] = text
        return dict(sorted(found.items()))

    def held_out(self, tokenizer: Tokenizer, most: int) -> list[str]:
        """The documents of the validation text, of each source of a mixture as many, up to `most` tokens in all.

        Args:
          tokenizer: the model's.
          most: tokens; the last document of a source may be cut.

        Raises:
          InputError: the run has no prepared tokens, as one that streams, or they are damaged.
        """
        from gpt2_jax.data.prepared import load_prepared

        own = self.config.get("data", {}).get("prepared")
        folder = Path(own).expanduser() if own else self.workdir / "data"
        folders = sorted(file.parent for file in (*folder.glob("manifest.json"), *folder.glob("*/manifest.json")))
        if not folders:
            raise InputError(f"{folder} holds no prepared tokens, as of a run that streams; give a text of your own")
        documents = []
        for source in folders:
            ids, left = [], most // len(folders)
            for shard in load_prepared(source).tokens("validation"):
                ids += shard[: left - len(ids)].tolist()
            ends = [i for i, token in enumerate(ids) if token == tokenizer.end_of_text]
            parts = np.split(np.array(ids, np.int64), np.array(ends, np.int64) + 1)
            texts = [tokenizer.decode([i for i in part.tolist() if i != tokenizer.end_of_text]) for part in parts]
            documents += [text for text in texts if text]
        return documents


@dataclasses.dataclass(frozen=True)
class Material:
    """What the sections are made of.

    Attributes:
      run: the folder.
      model: the language model, or why it cannot be opened.
      step: of the checkpoint; None where the model cannot be opened.
      own_text: to look at; "" takes one that the run never learnt from.
      own_prompts: to continue; none takes beginnings of such texts.
      sweep: the folder of a sweep; None makes a small one.
      evaluations: reports of scripts/evaluate.py, files or folders.
      seconds: that the small sweep may take.
      tokens: of the validation text, that are evaluated.
    """

    run: RunFolder
    model: LanguageModel | InputError
    step: int | None
    own_text: str
    own_prompts: Sequence[str]
    sweep: Path | None
    evaluations: Sequence[Path]
    seconds: float
    tokens: int
    tell: Callable[[str], None]

    @property
    def lm(self) -> LanguageModel:
        """The model; raises what kept it from being opened."""
        if isinstance(self.model, InputError):
            raise self.model
        return self.model

    @cached_property
    def held_out(self) -> list[str]:
        """Texts that the run validates on."""
        return self.run.held_out(self.lm.tokenizer, max(self.tokens, READ))

    @cached_property
    def text(self) -> tuple[str, str]:
        """A text to look at, and where it is from."""
        if self.own_text:
            return self.own_text, "The text that was given."
        try:
            return max(self.held_out, key=len), "A text of the validation split, of which nothing was learnt."
        except (InputError, ValueError):
            if not self.run.samples:
                raise InputError("the run has no validation text and no sample; give one with --text") from None
            return list(self.run.samples.values())[-1], "The run's last sample: it has no validation text at hand."

    @cached_property
    def prompts(self) -> list[str]:
        """What completions begin with: the run's own prompt, and beginnings of held-out texts."""
        if self.own_prompts:
            return list(self.own_prompts)
        own = self.run.config.get("training", {}).get("sample_prompt") or ""
        try:
            beginnings = [self.beginning(text, PROMPT_TOKENS) for text in self.held_out]
        except InputError:
            beginnings = []
        return list(dict.fromkeys([own, *beginnings]))[:PROMPTS]

    def beginning(self, text: str, tokens: int) -> str:
        """The first so many tokens of a text, and at most half a context."""
        ids = self.lm.tokenizer.encode(text)
        return self.lm.tokenizer.decode(ids[: max(1, min(tokens, self.lm.config.n_positions // 2))])
