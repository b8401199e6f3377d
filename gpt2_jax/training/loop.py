"""A training run from the first document to the last checkpoint: `train` is the whole way, top to bottom."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NoReturn

import jax
from tqdm import tqdm

from gpt2_jax.analysis import curves
from gpt2_jax.config import Config
from gpt2_jax.data.corpus import Batches
from gpt2_jax.errors import InputError
from gpt2_jax.model import num_parameters
from gpt2_jax.sharding import global_batch
from gpt2_jax.training import metrics, out_of_memory
from gpt2_jax.training.accounting import Clock
from gpt2_jax.training.alike import check_alike
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.early_stopping import EarlyStopping
from gpt2_jax.training.interruption import SOURCE_GONE, Agreement, stop_signals
from gpt2_jax.training.ladder import Done, Ladder
from gpt2_jax.training.memory import keep_freed_memory
from gpt2_jax.training.notices import watch_notices
from gpt2_jax.training.profile import Trace
from gpt2_jax.training.run import Run, check_finite
from gpt2_jax.training.watchdog import Watchdog
from gpt2_jax.training.workdir import claimed, log_to


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: steps done; all of them are in the last checkpoint.
      signal: the signal that stopped it early, or None.
      val_loss: the validation loss at the last step in nats a token, or None if it was stopped.
      best: with `evaluation.patience`, (step, its validation loss) of the lowest, which is in a checkpoint.
    """

    step: int
    signal: int | None
    val_loss: float | None
    best: tuple[int, float] | None = None


def train(options: dict[str, dict[str, Any]], workdir: Path) -> Outcome:
    """Trains until `training.steps`, going on from the latest checkpoint in `workdir` if there is one.

    Args:
      options: the config as nested dicts (see config.py).
      workdir: where everything goes: `data/`, `checkpoints/`, `tensorboard/`, `metrics.jsonl`, `config.json`,
        `train.log`, `perplexity.png`, if asked for `profile/` and, if need be, `bad_numbers/`.

    Raises:
      InputError: bad options or data, a checkpoint of another config, another run in this workdir, bad numbers
        (ladder.py) again and again, a full disk, a step that needs more memory than there is.
    """
    config = Config.from_dict(options)  # finds what is misspelt before anything is made
    keep_freed_memory()  # before JAX is asked for anything
    check_alike(config)
    log = workdir / "train.log"
    with claimed(workdir), log_to(log), Watchdog(config.distributed, log) as watchdog:
        run = Run.open(options, workdir)
        with out_of_memory.explained(run.config, run.program):
            return run_steps(run, workdir, watchdog)


def run_steps(run: Run, workdir: Path, watchdog: Watchdog) -> Outcome:
    """The training loop proper; see `train`."""
    config = run.config
    with (
        CheckpointWriter(workdir, config.checkpoint, run.tell) as checkpoints,
        stop_signals() as stop,
        Clock(run.tell) as clock,
        watchdog.over(clock),
        watch_notices(config.distributed, stop),
        contextlib.ExitStack() as resources,
    ):
        with clock.on("checkpoint" if checkpoints.steps else "other"):
            state = run.first_state(checkpoints)
        first = step = int(state.step)
        (workdir / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        run.describe(state.model)
        batches = resources.enter_context(contextlib.closing(run.batches(first, checkpoints)))
        trace = resources.enter_context(contextlib.closing(Trace(config.profile, workdir / "profile", first, run.say)))
        ladder = Ladder(run, checkpoints, workdir, state)
        stopping = run.early_stopping(first, checkpoints)
        parameters, trained = num_parameters(state.model), run.program.trained_parameters
        meter = metrics.Meter(config, parameters, run.program.mesh, clock, frozen=parameters - trained)
        hidden = jax.process_index() > 0 or None  # None: shown on a terminal
        bar = tqdm(total=config.training.steps, initial=first, unit="step", disable=hidden, dynamic_ncols=True)

        def wants(step: int, notice: int) -> tuple[int, int]:
            if stop.signal is not None:
                return step + notice, stop.signal
            left = meter.waiting(lambda: batches.remaining(notice + 1))
            if left is None or step + left >= config.training.steps:
                return config.training.steps, 0
            return step + left, SOURCE_GONE

        agreement = Agreement(run.program.mesh, wants)
        # At step 0 everything is measured again, that of step 0 included.
        with metrics.open_writer(workdir, from_step=first or -1, tell=run.tell) as writer, bar:
            val_loss, previous = None, None
            last = agreement.last_step(step)
            if first == 0 < last:
                with clock.on("evaluation"):
                    check_finite("validation loss", loss := run.validate(state, writer), first, config)
                    run.show_sample(state, writer)
                if stopping.evaluate(first, loss)[0]:
                    with clock.on("checkpoint"):
                        run.save(state, checkpoints, loss, batches, stopping)
            meter.restart()
            while step < last and not stopping.stops:
                if trace.moves(step, state):
                    meter.restart()
                batch = global_batch(meter.waiting(lambda: next(batches)), run.program.mesh)
                with clock.dispatching(step + 1):
                    state, current = run.train_step(state, batch)
                if previous is not None:  # fetched while the step just dispatched runs
                    report(previous, ladder, stopping, config, meter, writer, bar)
                step += 1
                done = previous = Done(step, current, batch)
                if ladder.due == step < config.training.steps:
                    with clock.on("checkpoint"):
                        state = ladder.roll_back(state, done)
                    meter.restart()

                ends = step == config.training.steps
                saves = ends or due(step, config.checkpoint.every)
                validates = saves or due(step, config.evaluation.every)
                samples = ends or due(step, config.training.sample_every)
                if validates or samples:
                    # Before: nothing that is not finite is saved.
                    report(previous, ladder, stopping, config, meter, writer, bar)
                    previous = None
                    # While steps are skipped there is nothing new, and a good checkpoint would be deleted for it.
                    new = int(state.guard.row) == 0
                    if validates:
                        with clock.on("evaluation"):
                            state, val_loss = ladder.validate(state, done, writer)
                        new = int(state.guard.row) == 0
                        if new or ends:
                            lowest, overfits = stopping.evaluate(step, val_loss)
                            saves, ends = saves or lowest, ends or stopping.stops
                            for line in filter(None, (overfits, stopping.why if stopping.stops else "")):
                                run.tell(line)
                    if ends or (saves and new):
                        with clock.on("checkpoint"):
                            run.save(state, checkpoints, val_loss, batches, stopping)
                    if samples or ends:
                        with clock.on("evaluation"):
                            run.show_sample(state, writer)
                    meter.restart()
                with clock.on("device_wait"):
                    last = agreement.last_step(step)
            if last < config.training.steps and (step > first or agreement.cause != SOURCE_GONE):
                if previous is not None:
                    report(previous, ladder, stopping, config, meter, writer, bar)
                with clock.on("checkpoint"):
                    run.save(state, checkpoints, None, batches, stopping)
            if stopping.stops and step == first:
                run.tell(stopping.why)
            trace.close()
            with clock.on("checkpoint"):
                checkpoints.wait()
            run.tell_of(batches.counts)
            if step > first:
                writer.write_scalars(step, {f"time/{name}": share for name, share in clock.shares().items()})
                run.tell(clock.goodput())
            if agreement.cause == SOURCE_GONE:
                raise_source_gone(step, batches)
    if jax.process_index() == 0:
        try:
            curves.perplexity_curve(workdir / "metrics.jsonl", workdir / "perplexity.png")
        except (OSError, InputError) as error:
            run.tell(f"the curve of perplexity was not drawn ({error}): what was trained is saved")
    best = None if stopping.best_step is None else (stopping.best_step, stopping.best_loss)
    return Outcome(step, agreement.cause or None, val_loss, best)


def due(step: int, every: int) -> bool:
    """Whether `step` is one of those `every` so many; never if that is 0."""
    return every > 0 and step % every == 0


def raise_source_gone(step: int, batches: Batches) -> NoReturn:
    """Raises what is wrong with this process's source, or that it is another's."""
    if batches.remaining(1) == 0:
        next(batches)
    raise InputError(
        f"stopped after step {step} because another process of the run can read its text no more; its log says why"
    )


def report(
    done: Done,
    ladder: Ladder,
    stopping: EarlyStopping,
    config: Config,
    meter: metrics.Meter,
    writer: metrics.MetricWriter,
    bar: tqdm,
) -> None:
    """Shows the metrics of a finished step, and writes those that are finite when a line is due.

    Raises:
      InputError: the loss or its gradient is not finite, and the guard is off.
    """
    step, values = done.step, done.values
    loss = meter.waiting(lambda: float(values["loss"]), on="device_wait")
    ladder.see(done)
    stopping.train(loss)
    meter.count_step()
    bar.update()
    if due(step, config.training.log_every) or step in (1, config.training.steps):
        speed = meter.read()
        named = {"train_loss": loss} | {name: float(values[name]) for name in ("grad_norm", "learning_rate")}
        named |= {"skipped_steps": int(values["guard"].skipped), "rollbacks": int(values["guard"].rollbacks)}
        writer.write_scalars(step, {name: value for name, value in named.items() if math.isfinite(value)} | speed)
        bar.set_postfix_str(f"loss {loss:.3f}, {speed['tokens_per_second']:,.0f} tokens/s", refresh=False)
