"""Every option there is, with its default: one frozen dataclass a group, here, in data/options.py and in model.py.

A config file (`configs/*.py`) starts from `default_config()` and changes what its experiment changes; the command line
overrides single options (`--config.optimizer.learning_rate=1e-3`); `Config.from_dict` turns the result into checked
dataclasses, so a misspelt or impossible option stops a run before it starts.
"""

import dataclasses
import inspect
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict, config_dict

from gpt2_jax.data.options import DataConfig
from gpt2_jax.errors import InputError, check, suggest
from gpt2_jax.model_config import GPT2Config


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, with clipping by the global norm, decoupled weight decay, and the learning rate's course.

    Options that an optimizer does not have must be left at their defaults, see `UNUSED`.

    Attributes:
      name: "adamw" (Loshchilov & Hutter, 2019); "adafactor" (Shazeer & Stern, 2018), almost without state; "lion"
        (Chen et al., 2023), half of AdamW's state, for which 3 to 10 times lower learning rates and as much higher
        decay are advised; "muon" (Jordan, 2024) for the matrices of the blocks and AdamW for all else, at AdamW's
        learning rates (Liu et al., 2025).
      moments_dtype: in which moments are kept between steps, "float32" or "bfloat16" (half the state); parameters are
        float32 in any case. Adafactor has only "float32".
      learning_rate: the peak.
      schedule: after the warm-up, "cosine" or "linear" to `final_learning_rate` at the last step, "constant", or "wsd"
        (warm-up, stable, decay): constant until the last `decay_fraction` of the steps, then linear.
      final_learning_rate: where cosine, linear and wsd end.
      warmup_steps: steps of linear rise from 0 to the peak.
      decay_fraction: the share of all steps in which "wsd" decays, in (0, 1].
      beta1: decay of Adam's first moment; how much of Lion's momentum is in a step; adafactor has none.
      beta2: decay of Adam's second moment and of Lion's momentum; the most that Adafactor's rising decay becomes.
      eps: added to the root of Adam's second moment and to the norm of Muon's matrices; its square is added to the
        squared gradients of Adafactor; lion has none.
      momentum: decay of Muon's momentum; the others have none.
      weight_decay: decoupled decay of parameters whose name matches `decay_pattern`.
      decay_pattern: regular expression searched in parameter names such as "h.attn.c_attn.kernel".
      clip_norm: the gradients' largest global norm; 0 leaves them alone.
    """

    name: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    learning_rate: float = 6e-4
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    final_learning_rate: float = 6e-5
    warmup_steps: int = 100
    decay_fraction: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.1
    decay_pattern: str = r"(kernel|embedding)$"
    clip_norm: float = 1.0

    def __post_init__(self):
        check(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        check(
            0 <= self.final_learning_rate <= self.learning_rate,
            "optimizer.final_learning_rate",
            self.final_learning_rate,
            f"from 0 to the peak ({self.learning_rate})",
        )
        check(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        check(0 < self.decay_fraction <= 1, "optimizer.decay_fraction", self.decay_fraction, "in (0, 1]")
        check(0 <= self.beta1 < 1, "optimizer.beta1", self.beta1, "in [0, 1)")
        check(0 <= self.beta2 < 1, "optimizer.beta2", self.beta2, "in [0, 1)")
        check(self.eps > 0, "optimizer.eps", self.eps, "above 0")
        check(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "in [0, 1)")
        check(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        check(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "0 (off) or above")
        self._check_for_name()

    def _check_for_name(self) -> None:
        """Raises `InputError` for an option that would do nothing, or harm, with this optimizer."""
        for option in UNUSED[self.name]:
            default = getattr(OptimizerConfig, option)
            wanted = f"left at {default!r}: optimizer.name={self.name!r} has no use for it"
            check(getattr(self, option) == default, f"optimizer.{option}", getattr(self, option), wanted)
        if self.moments_dtype == "bfloat16":
            # Half of bfloat16's spacing is up to 0.4 %: what changes by less a step never changes.
            for option in {"beta1", "beta2", "momentum"} - set(UNUSED[self.name]):
                wanted = f"at most {MOST_IN_BFLOAT16} with optimizer.moments_dtype='bfloat16', which rounds away less"
                check(getattr(self, option) <= MOST_IN_BFLOAT16, f"optimizer.{option}", getattr(self, option), wanted)


# What each optimizer has no use for.
UNUSED = {
    "adamw": ("momentum",),
    "adafactor": ("moments_dtype", "beta1", "momentum"),
    "lion": ("eps", "momentum"),
    "muon": (),
}
MOST_IN_BFLOAT16 = 0.99  # of the decay of a moment


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The length and the shape of a run.

    Attributes:
      steps: optimizer steps in all; a resumed run goes on to the same number.
      batch_size: sequences in one optimizer step over all devices and all accumulation steps together.
      sequence_length: tokens predicted per sequence; 0 is the model's whole context (`model.n_positions`).
      accumulation_steps: parts that a batch is cut into, one after another, to save memory; the result is the same.
      loss_chunks: parts of a sequence whose logits are made one after another and recomputed for the gradient, so that
        the float32 logits of a whole batch never exist at once; 1 is off (recomputing costs about 15 % on CPU).
      seed: of initial parameters, data order and dropout.
      log_every: steps between lines of metrics.
      sample_every: steps between samples written to the log; 0: only before and after training.
      sample_prompt: what those samples start from; empty starts from end-of-text.
      sample_tokens: tokens in each.
    """

    steps: int = 1000
    batch_size: int = 8
    sequence_length: int = 0
    accumulation_steps: int = 1
    loss_chunks: int = 1
    seed: int = 0
    log_every: int = 10
    sample_every: int = 0
    sample_prompt: str = ""
    sample_tokens: int = 128

    def __post_init__(self):
        check(self.steps >= 0, "training.steps", self.steps, "0 or more")
        check(self.batch_size >= 1, "training.batch_size", self.batch_size, "at least 1")
        check(
            self.sequence_length >= 0,
            "training.sequence_length",
            self.sequence_length,
            "0 (the model's context) or more",
        )
        check(
            self.accumulation_steps >= 1 and self.batch_size % self.accumulation_steps == 0,
            "training.accumulation_steps",
            self.accumulation_steps,
            f"a divisor of training.batch_size ({self.batch_size})",
        )
        check(self.loss_chunks >= 1, "training.loss_chunks", self.loss_chunks, "at least 1")
        check(self.seed >= 0, "training.seed", self.seed, "0 or more")
        check(self.log_every >= 1, "training.log_every", self.log_every, "at least 1")
        check(self.sample_every >= 0, "training.sample_every", self.sample_every, "0 (off) or more")
        check(self.sample_tokens >= 0, "training.sample_tokens", self.sample_tokens, "0 (no samples) or more")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Validation during training, on windows that never change.

    Attributes:
      every: steps between evaluations; 0 evaluates only before and after training.
      windows: validation windows of `training.sequence_length` tokens, spread evenly, of each source; 0 is the whole
        split.
      batch_size: sequences in one evaluation step; 0 is `training.batch_size` over the accumulation steps.
    """

    every: int = 100
    windows: int = 0
    batch_size: int = 0

    def __post_init__(self):
        check(self.every >= 0, "evaluation.every", self.every, "0 (only before and after training) or more")
        check(self.windows >= 0, "evaluation.windows", self.windows, "0 (the whole split) or more")
        check(self.batch_size >= 0, "evaluation.batch_size", self.batch_size, "0 (as in training) or more")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk.

    Attributes:
      every: steps between checkpoints, besides the last step and an interruption; 0 saves only then.
      keep: the newest checkpoints that stay.
      keep_best: besides those, the checkpoints with the lowest validation loss that stay.
    """

    every: int = 500
    keep: int = 1
    keep_best: int = 1

    def __post_init__(self):
        check(self.every >= 0, "checkpoint.every", self.every, "0 (only at the end) or more")
        check(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")
        check(self.keep_best >= 0, "checkpoint.keep_best", self.keep_best, "0 or more")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one axis may be -1: all devices that the others leave.

    Attributes:
      data: copies of the model, each with its part of the batch.
      fsdp: shards of every parameter and its optimizer moments; the batch is cut along this axis too.
      model: shards of attention heads, MLP width and vocabulary (tensor parallelism).
      sequence: parts of every sequence (context parallelism); keys and values are gathered for attention.
      slices: TPU slices that a slower network joins, or nodes, each with its part of `data`; 0 is what the devices
        say. Where they say nothing, equal parts of them in their order.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    sequence: int = 1
    slices: int = 0

    def __post_init__(self):
        axes = {name: size for name, size in dataclasses.asdict(self).items() if name != "slices"}
        for axis, size in axes.items():
            check(size >= 1 or size == -1, f"mesh.{axis}", size, "at least 1, or -1 for the devices left")
        check(self.slices >= 0, "mesh.slices", self.slices, "0 or more")
        check(
            list(axes.values()).count(-1) <= 1,
            "mesh",
            axes,
            "-1 on one axis at most",
        )


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes that a run consists of, usually one a host; see training/distributed.py.

    Attributes:
      mode: "auto" joins the others if options, environment variables, SLURM, Open MPI or a TPU's metadata tell of any;
        "on" refuses to run alone; "off" runs alone whatever they tell.
      coordinator: "HOST:PORT" of process 0, as the others reach it; empty: the environment's JAX_COORDINATOR_ADDRESS.
      num_processes: in all; 0: the environment's JAX_NUM_PROCESSES, OMPI_COMM_WORLD_SIZE or SLURM_NTASKS.
      process_id: of this one, from 0; -1: the environment's JAX_PROCESS_ID, OMPI_COMM_WORLD_RANK or SLURM_PROCID.
      heartbeat_seconds: after which a process that is not heard of any more counts as dead, and ends all others.
      initialization_seconds: that processes wait for each other at the start.
    """

    mode: Literal["auto", "on", "off"] = "auto"
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1
    heartbeat_seconds: int = 100
    initialization_seconds: int = 300

    def __post_init__(self):
        host, _, port = self.coordinator.rpartition(":")
        check(
            not self.coordinator or (host != "" and port.isdecimal() and 0 < int(port) < 65536),
            "distributed.coordinator",
            self.coordinator,
            "HOST:PORT, such as 10.0.0.1:8476",
        )
        check(
            self.num_processes >= 0,
            "distributed.num_processes",
            self.num_processes,
            "1 or more, or 0 (from the environment)",
        )
        check(
            self.process_id >= -1 and (self.num_processes == 0 or self.process_id < self.num_processes),
            "distributed.process_id",
            self.process_id,
            "from 0 to distributed.num_processes - 1" + f" ({self.num_processes - 1})" * (self.num_processes > 0)
            + ", or -1 (from the environment)",
        )  # fmt: skip
        check(
            self.mode != "off" or (self.coordinator, self.num_processes, self.process_id) == ("", 0, -1),
            "distributed.mode",
            self.mode,
            "'auto' or 'on' where distributed.coordinator, num_processes or process_id is given",
        )
        check(self.heartbeat_seconds >= 1, "distributed.heartbeat_seconds", self.heartbeat_seconds, "at least 1")
        check(
            self.initialization_seconds >= 1,
            "distributed.initialization_seconds",
            self.initialization_seconds,
            "at least 1",
        )


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """A trace of a few steps, of host and device, in `<workdir>/profile`.

    Attributes:
      start: the first step traced, counted from 1 as in the metrics; 0 is off. The very first compiles, too.
      steps: how many are traced.
    """

    start: int = 0
    steps: int = 3

    def __post_init__(self):
        check(self.start >= 0, "profile.start", self.start, "0 (off) or the number of a step")
        check(self.steps >= 1, "profile.steps", self.steps, "at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """All groups of a run; attributes as in the config file."""

    model: GPT2Config
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
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
            self.profile.start <= self.training.steps,
            "profile.start",
            self.profile.start,
            f"at most training.steps ({self.training.steps})",
        )

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
        for name in groups:
            _check_name(name, kinds, "config")
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


def meanings(kind: type) -> dict[str, str]:
    """{option: its meaning} of a group, from the "Attributes" of its docstring, in one line each."""
    _, _, attributes = inspect.getdoc(kind).partition("Attributes:\n")
    found = re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", attributes, re.M)
    return {name: " ".join(text.split()) for names, text in found for name in names.split(", ")}


def _groups() -> dict[str, type]:
    return get_type_hints(Config)


def _check_name(name: str, known: dict[str, Any], where: str) -> None:
    if name not in known:
        raise InputError(f"{where} has no {name!r}; {suggest(name, list(known))}")


def _checked(option: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the annotated type (an int is also a float), else an `InputError`."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        check(value in kinds, option, value, " or ".join(map(repr, kinds)))
        return value
    kinds = kinds or (hint,)
    if float in kinds and type(value) is int:
        return float(value)
    names = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
    check(type(value) in kinds, option, value, f"of type {names}")
    return value
