"""Every option there is, with its default: one frozen dataclass a group, of model_config.py and the options.py files.

A config file (`configs/*.py`) starts from `default_config()` and changes what its experiment changes; the command line
overrides single options (`--config.optimizer.learning_rate=1e-3`); `Config.from_dict` turns the result into checked
dataclasses, so a misspelt or impossible option stops a run before it starts.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from absl import flags
from ml_collections import ConfigDict, config_dict

from gpt2_jax.data.options import START, DataConfig
from gpt2_jax.errors import InputError, check, one_line, shown, suggest
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.training.device_options import DistributedConfig, MeshConfig
from gpt2_jax.training.finetune_options import FinetuneConfig, LoraConfig
from gpt2_jax.training.options import (
    CheckpointConfig,
    EvaluationConfig,
    GuardConfig,
    OptimizerConfig,
    ProfileConfig,
    TrainingConfig,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """All groups of a run; attributes as in the config file."""

    model: GPT2Config
    data: DataConfig = DataConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    lora: LoraConfig = LoraConfig()
    image: ImageConfig = ImageConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    profile: ProfileConfig = ProfileConfig()

    def __post_init__(self):
        check(
            self.training.sequence_length <= self.model.n_positions,
            "training.sequence_length",
            self.training.sequence_length,
            f"at most model.n_positions ({self.model.n_positions})",
        )
        check(
            self.sequence_length % self.training.loss_chunks == 0,
            "training.loss_chunks",
            self.training.loss_chunks,
            f"a divisor of the sequence length ({self.sequence_length})",
        )
        check(
            self.optimizer.warmup_steps <= self.training.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"at most training.steps ({self.training.steps})",
        )
        check(
            self.evaluation.patience == 0 or self.checkpoint.keep_best > 0,
            "checkpoint.keep_best",
            self.checkpoint.keep_best,
            "1 or more with evaluation.patience, which is to keep the best",
        )
        trained = self.data.tokenizer in ("bpe", "characters")
        check(
            not trained if self.finetune.start else self.data.tokenizer != START,
            "data.tokenizer",
            self.data.tokenizer,
            "'start', that of the model, or one that gives the same ids, with finetune.start"
            if trained
            else "'bpe', 'characters', a tokenizer.json, a folder or a hub id unless finetune.start names a model",
        )
        if self.lora.rank:
            adapted = "with lora.rank, whose adapters are trained beside what lora.also_train names"
            check(bool(self.finetune.start), "finetune.start", "", f"the model that they adapt {adapted}")
            for name in ("train", "freeze"):
                value = getattr(self.finetune, name)
                check(value == "", f"finetune.{name}", value, f"left empty {adapted}")
        if self.image.source:
            self._check_images()
        check(
            self.profile.start <= self.training.steps,
            "profile.start",
            self.profile.start,
            f"at most training.steps ({self.training.steps})",
        )

    def _check_images(self) -> None:
        K = self.image.tokens
        check(
            self.sequence_length > K,
            "training.sequence_length" if self.training.sequence_length else "model.n_positions",
            self.sequence_length,
            f"above {K}, the positions of an image (image.prefix_length, or its patches)",
        )

    @property
    def selection(self) -> FinetuneConfig:
        """Which parameters are trained: of adapters these, and what they name."""
        return dataclasses.replace(self.finetune, train=self.lora.trained) if self.lora.rank else self.finetune

    @property
    def sequence_length(self) -> int:
        """Tokens predicted per training sequence."""
        return self.training.sequence_length or self.model.n_positions

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dicts, ready for JSON; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, groups: dict[str, dict[str, Any]], *, vocab_size: int | None = None) -> "Config":
        """Builds the checked config from nested dicts, as `to_dict` gives or a config file holds.

        Args:
          groups: `{group: {option: value}}`; groups and options left out take their defaults.
          vocab_size: the tokenizer's number of entries, for a `model.vocab_size` of 0; while it is not known, GPT-2's.

        Raises:
          InputError: an unknown group or option (with the nearest valid name), a value of another type or out of
            range.
        """
        kinds = _groups()
        for name, group in groups.items():
            _check_name(name, kinds, "config")
            check(isinstance(group, Mapping | ConfigDict), f"config.{name}", group, "a group of options")
        built = {}
        for name, kind in kinds.items():
            options = dict(groups.get(name, {}))
            hints = get_type_hints(kind)
            for option, value in options.items():
                _check_name(option, hints, f"config.{name}")
                options[option] = _checked(f"{name}.{option}", value, hints[option])
            if name == "model" and options.get("vocab_size") == 0:
                options["vocab_size"] = vocab_size or GPT2Config.vocab_size
            built[name] = kind(**options)
        return cls(**built)


def default_config() -> ConfigDict:
    """A fresh ConfigDict of every group with its defaults; `model.vocab_size` is 0: the tokenizer's size."""
    groups = {}
    for name, kind in _groups().items():
        group = {field.name: field.default for field in dataclasses.fields(kind)}
        if name == "model":
            group |= {"vocab_size": 0, "n_inner": config_dict.placeholder(int)}
        groups[name] = group
    return ConfigDict(groups)


def check_overrides(arguments: list[str]) -> None:
    """Raises `InputError` for a `--config.group.option=value` among command-line arguments that names no option."""
    kinds = _groups()
    for argument in arguments:
        path = argument.lstrip("-").split("=")[0].split(".")
        if not argument.startswith("-") or path[0] != "config" or len(path) == 1:
            continue
        _check_name(path[1], kinds, "config")
        options = get_type_hints(kinds[path[1]])
        if len(path) != 3:
            raise InputError(f"{argument} names no option; config.{path[1]} has {', '.join(options)}")
        _check_name(path[2], options, f"config.{path[1]}")


def parse_flags(argv: list[str]) -> list[str]:
    """The `flags_parser` of `absl.app.run` for a script that takes a config: what is wrong ends it, in one line."""
    try:
        check_overrides(argv[1:])
        return flags.FLAGS(argv)
    except (InputError, flags.Error) as error:
        said = cause = error
        while cause := cause.__context__:  # a config file's own, which ml_collections wraps in a traceback
            said = cause if isinstance(cause, InputError) else said
        sys.exit(f"error: {said}")
    except OSError as error:  # no such config file
        sys.exit(f"error: {one_line(error)}")


def meanings(kind: type) -> dict[str, str]:
    """{option: its meaning} of a group, from the "Attributes" of its docstring, in one line each."""
    _, _, attributes = inspect.getdoc(kind).partition("Attributes:\n")
    found = re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", attributes, re.M)
    return {name: " ".join(text.split()) for names, text in found for name in names.split(", ")}


def _groups() -> dict[str, type]:
    return get_type_hints(Config)


def _check_name(name: str, known: dict[str, Any], where: str) -> None:
    if name not in known:
        raise InputError(f"{where} has no {shown(name)}; {suggest(name, list(known))}")


def _checked(option: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the annotated type (an int is also a float), else an `InputError`."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        check(value in kinds, option, value, " or ".join(map(repr, kinds)))
        return value
    kinds = kinds or (hint,)
    if float in kinds and type(value) is int and abs(value) < 2**63:
        return float(value)
    names = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
    check(type(value) in kinds, option, value, f"of type {names}")
    return value
