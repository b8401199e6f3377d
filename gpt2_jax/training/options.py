"""The options of a run: how it optimizes, how long, what it measures, saves and traces."""

import dataclasses
from typing import Literal

from gpt2_jax.errors import check


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
      loss_chunks: parts of a sequence whose logits are made one after another, each with its part of the gradient, so
        that the float32 logits of a whole batch never exist at once; 1 is off.
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
      patience: the run ends when the validation loss has not fallen for so many evaluations; each that is the lowest so
        far becomes a checkpoint, and a line tells when the run overfits. 0 is off.
    """

    every: int = 100
    windows: int = 0
    batch_size: int = 0
    patience: int = 0

    def __post_init__(self):
        check(self.every >= 0, "evaluation.every", self.every, "0 (only before and after training) or more")
        check(self.windows >= 0, "evaluation.windows", self.windows, "0 (the whole split) or more")
        check(self.batch_size >= 0, "evaluation.batch_size", self.batch_size, "0 (as in training) or more")
        check(self.patience >= 0, "evaluation.patience", self.patience, "0 (off) or more")
        check(
            self.patience == 0 or self.every > 0,
            "evaluation.every",
            self.every,
            "1 or more with evaluation.patience, which counts evaluations",
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk.

    Attributes:
      every: steps between checkpoints, besides the last step and an interruption; 0 saves only then.
      keep: the newest checkpoints that stay, at least two: one may turn out to be damaged. As many of `every` so many
        steps do, where the newest are of interruptions.
      keep_best: besides those, the checkpoints with the lowest validation loss that stay.
      keep_every: besides those, the checkpoints of every so many steps stay, for good; 0: none.
      on_failure: "stop" ends the run when a checkpoint cannot be saved (a full disk); "go_on" says so and trains on
        until the next is due. The last of a run has to be saved in any case.
    """

    every: int = 500
    keep: int = 2
    keep_best: int = 1
    keep_every: int = 0
    on_failure: Literal["stop", "go_on"] = "stop"

    def __post_init__(self):
        check(self.every >= 0, "checkpoint.every", self.every, "0 (only at the end) or more")
        check(self.keep >= 2, "checkpoint.keep", self.keep, "at least 2: one may turn out to be damaged")
        check(self.keep_best >= 0, "checkpoint.keep_best", self.keep_best, "0 or more")
        check(
            self.keep_every == 0 or (self.keep_every > 0 and self.every > 0 and self.keep_every % self.every == 0),
            "checkpoint.keep_every",
            self.keep_every,
            f"0 (none) or a multiple of checkpoint.every ({self.every})",
        )


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What is done about a loss or a gradient norm that is not finite or far too large: skip, roll back, stop.

    Attributes:
      window: steps that the mean and the deviation of losses and gradient norms are of; before so many have been, only
        what is not finite is skipped.
      sigmas: deviations above its mean beyond which a value is too large. At 6, single batches of 512 tokens with twice
        the usual gradient would be, which do no harm; what ends a run is far beyond 10.
      skips: steps skipped in a row before the run goes back to a checkpoint; 0 turns the guard off: what is not finite
        stops the run.
      rollbacks: so many are tried in the whole run before it stops.
    """

    window: int = 128
    sigmas: float = 10.0
    skips: int = 3
    rollbacks: int = 2

    def __post_init__(self):
        check(self.window >= 2, "guard.window", self.window, "at least 2")
        check(self.sigmas > 0, "guard.sigmas", self.sigmas, "above 0")
        check(self.skips >= 0, "guard.skips", self.skips, "0 (off) or more")
        check(self.rollbacks >= 0, "guard.rollbacks", self.rollbacks, "0 (stop at once) or more")


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
