"""A training run from the first document to the last checkpoint, top to bottom in `train`."""

import contextlib
import dataclasses
import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh
from tqdm import tqdm

from gpt2_jax.analysis import plots
from gpt2_jax.config import Config
from gpt2_jax.data import dataset
from gpt2_jax.data.tokenize import Prepared, prepare
from gpt2_jax.errors import InputError
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import GPT2, num_parameters, parameter_names
from gpt2_jax.sharding import check_mesh, global_batch, make_mesh, on_one_device, tree_shardings
from gpt2_jax.training import metrics
from gpt2_jax.training.checkpoint import Checkpoints, abstract_state, differences
from gpt2_jax.training.memory import keep_freed_memory
from gpt2_jax.training.optimizer import make_optimizer, make_schedule
from gpt2_jax.training.step import eval_step, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: optimizer steps done; all of them are in the last checkpoint.
      signal: the signal that stopped it early, or None.
      val_loss: the last validation loss in nats a token, or None.
    """

    step: int
    signal: int | None
    val_loss: float | None


def train(options: dict[str, dict[str, Any]], workdir: Path) -> Outcome:
    """Trains until `training.steps`, going on from the latest checkpoint in `workdir` if there is one.

    Args:
      options: the config as nested dicts (see config.py).
      workdir: where everything goes: `data/`, `checkpoints/`, `tensorboard/`, `metrics.jsonl`, `config.json` and
        `perplexity.png`.

    Raises:
      InputError: bad options or data, a checkpoint of another config, a loss that is not finite, a full disk.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    log_to(workdir / "train.log")
    keep_freed_memory()
    say = tqdm.write if jax.process_index() == 0 else lambda _: None
    unbound = Config.from_dict(options)  # finds what is misspelt before any work is done
    mesh = make_mesh(unbound.mesh)

    prepared = prepare(unbound.data, workdir / "data", progress=say)
    config = bind_vocabulary(options, len(prepared.tokenizer))
    T, B = config.sequence_length, config.training.batch_size
    eval_batch_size = config.evaluation.batch_size or B // config.training.accumulation_steps
    check_mesh(
        mesh,
        config.model,
        {
            "training.batch_size / training.accumulation_steps": B // config.training.accumulation_steps,
            "evaluation.batch_size": eval_batch_size,
        },
    )

    schedule = make_schedule(config.optimizer, config.training.steps)
    tx = make_optimizer(config.optimizer, config.training.steps)
    init = functools.partial(init_state, config.model, tx, config.training.seed)
    shapes = jax.eval_shape(init)
    shardings = tree_shardings(shapes, mesh)
    train_step = jax.jit(
        make_train_step(
            tx,
            schedule,
            accumulation_steps=config.training.accumulation_steps,
            loss_chunks=config.training.loss_chunks,
        ),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    windows = functools.partial(
        dataset.evaluation_batches,
        prepared,
        batch_size=eval_batch_size,
        sequence_length=T,
        windows=config.evaluation.windows,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    evaluate = functools.partial(evaluate_model, jax.jit(eval_step), windows, mesh)
    bits_per_byte = 1 / (math.log(2) * prepared.bytes_per_token("validation"))  # from nats per token

    with Checkpoints(workdir, config.checkpoint) as checkpoints, stop_signals() as stop:
        # Where the parameters come from, in this order: 1. resume a checkpoint, 2. start from scratch.
        if checkpoints.steps:
            first = checkpoints.find()
            refuse_other_config(checkpoints, first, config, workdir)
            state = checkpoints.restore(first, abstract_state(shapes, shardings))
            say(f"resumed from step {first} of {checkpoints.directory}: parameters, optimizer, key and data order")
        else:
            first = 0
            state = jax.jit(init, out_shardings=shardings)()
        (workdir / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        describe(state.model, config, prepared, mesh, say)
        batches = dataset.train_batches(
            prepared,
            batch_size=B,
            sequence_length=T,
            seed=config.training.seed,
            start_step=first,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        writer = metrics.make_writer(workdir, from_step=first)
        meter = Meter(config, num_parameters(state.model), mesh)
        val_loss: float | None = None

        def validate() -> float:
            loss = evaluate(state.model)
            values = {"val_loss": loss, "val_perplexity": math.exp(loss), "val_bits_per_byte": loss * bits_per_byte}
            writer.write_scalars(step, values)
            say(
                f"step {step:>6}  val loss {loss:.4f}  perplexity {math.exp(loss):.2f}  "
                f"bits/byte {loss * bits_per_byte:.3f}"
            )
            return loss

        def show_sample() -> None:
            if config.training.sample_tokens:
                text = sample(state.model, prepared, config, mesh)
                writer.write_texts(step, {"sample": text})
                say(f"--- sample at step {step} ---\n{text}\n---")

        def save() -> None:
            checkpoints.save(state, config.to_dict(), prepared.tokenizer.to_json(), val_loss)

        step, previous = first, None
        if first == 0:
            val_loss = validate()
            show_sample()
        bar = tqdm(total=config.training.steps, initial=first, unit="step", disable=None, dynamic_ncols=True)
        meter.restart()
        while step < config.training.steps and stop.signal is None:
            batch = global_batch(meter.waiting(lambda: next(batches)), mesh)
            state, current = train_step(state, batch)
            if previous is not None:  # fetched while the step just dispatched runs
                report(writer, bar, meter, step, previous, config)
            step, previous = step + 1, current
            bar.update()

            last = step == config.training.steps
            saves = last or due(step, config.checkpoint.every)
            evaluates = saves or due(step, config.evaluation.every)
            samples = last or due(step, config.training.sample_every)
            if evaluates or samples:
                report(writer, bar, meter, step, previous, config)  # also: no checkpoint of a loss that is not finite
                previous = None
                val_loss = validate() if evaluates else val_loss
                if saves:
                    save()
                if samples:
                    show_sample()
                meter.restart()
        bar.close()
        if stop.signal is not None:
            if previous is not None:
                report(writer, bar, meter, step, previous, config)
            val_loss = None  # of an earlier step: it must not rank this one
            save()
        checkpoints.wait()
        writer.close()
    if jax.process_index() == 0 and (workdir / "metrics.jsonl").exists():
        plots.perplexity_curve(workdir / "metrics.jsonl", workdir / "perplexity.png")
    return Outcome(step, stop.signal, val_loss)


def log_to(file: Path) -> None:
    """Sends what libraries and this package log to a file; only warnings reach the terminal."""
    handler = logging.logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.PythonFormatter())
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setLevel(logging.logging.WARNING)
    logging.logging.getLogger().addHandler(handler)


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def bind_vocabulary(options: dict[str, dict[str, Any]], tokenizer_size: int) -> Config:
    """The config with `model.vocab_size` taken from the tokenizer where it is 0, and large enough for it."""
    config = Config.from_dict(options, vocab_size=tokenizer_size)
    if config.model.vocab_size < tokenizer_size:
        raise InputError(
            f"model.vocab_size is {config.model.vocab_size} and the tokenizer has {tokenizer_size} entries; set it to "
            f"0 (the tokenizer's) or to at least {tokenizer_size}"
        )
    return config


def refuse_other_config(checkpoints: Checkpoints, step: int, config: Config, workdir: Path) -> None:
    """Raises `InputError` if the checkpoint is of a run that this config does not continue."""
    saved, _ = checkpoints.read_json(step)
    if different := differences(saved, config.to_dict()):
        raise InputError(
            f"{workdir} holds a run with another config: {'; '.join(different)}. Nothing was changed: give the same "
            "options to go on with it, or another --workdir to start anew"
        )


def describe(model: GPT2, config: Config, prepared: Prepared, mesh: Mesh, say: Callable[[str], None]) -> None:
    """Logs what is about to run: parameters, data, devices."""
    leaves = dict(zip(jax.tree.leaves(parameter_names(model)), jax.tree.leaves(model)))
    logging.info("parameters (vocabulary padded):\n%s", parameter_overview.get_parameter_overview(leaves))
    tokens_per_step = config.training.batch_size * config.sequence_length
    say(
        f"{num_parameters(model):,} parameters on {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}; "
        f"{prepared.count('train'):,} training and {prepared.count('validation'):,} validation tokens; "
        f"{config.training.steps:,} steps of {tokens_per_step:,} tokens"
    )
    known = metrics.peak_flops(mesh.devices.flat[0]) is not None
    logging.info("mfu = %s", metrics.MFU_FORMULA if known else "not reported: this device's peak is not known")


def evaluate_model(step: Callable, windows: Callable, mesh: Mesh, model: GPT2) -> float:
    """The mean loss over the validation windows, in nats a token."""
    sums = [step(model, global_batch(batch, mesh)) for batch in windows()]
    loss, count = (math.fsum(float(s[name]) for s in sums) for name in ("loss", "count"))
    return loss / count


def sample(model: GPT2, prepared: Prepared, config: Config, mesh: Mesh) -> str:
    """Text from the model as it is; on processes but the first, none."""
    model = on_one_device(model, mesh)
    if jax.process_index() != 0:
        return ""
    lm = LanguageModel(model, prepared.tokenizer)
    prompt = lm.tokenizer.encode(config.training.sample_prompt) or [lm.tokenizer.end_of_text]
    room = min(config.training.sample_tokens, config.model.n_positions - len(prompt))
    return lm.generate(prompt, max_new_tokens=room, temperature=0.8, top_p=0.95, seed=config.training.seed).text


def report(writer: Any, bar: tqdm, meter: "Meter", step: int, values: dict[str, jax.Array], config: Config) -> None:
    """Writes the metrics of a finished step when one is due; stops the run if its loss is not finite."""
    loss = float(values["loss"])
    if not math.isfinite(loss):
        raise InputError(
            f"the loss of step {step} is {loss}; the last checkpoint, from before it, is untouched: run again with a "
            f"lower optimizer.learning_rate ({config.optimizer.learning_rate}) or a longer optimizer.warmup_steps "
            f"({config.optimizer.warmup_steps})"
        )
    meter.count_step()
    if due(step, config.training.log_every) or step in (1, config.training.steps):
        numbers = {f"train_{k}" if k == "loss" else k: float(v) for k, v in values.items()} | meter.read()
        writer.write_scalars(step, numbers)
        bar.set_postfix_str(f"loss {loss:.3f}, {numbers['tokens_per_second']:,.0f} tok/s", refresh=False)


class Meter:
    """Speed since it was last read, with the time spent on evaluation and checkpoints left out."""

    def __init__(self, config: Config, parameters: int, mesh: Mesh):
        self._tokens_per_step = config.training.batch_size * config.sequence_length
        peak = metrics.peak_flops(mesh.devices.flat[0])
        self._flops_per_token = metrics.flops_per_token(config.model, parameters, config.sequence_length)
        self._peak = None if peak is None else peak * mesh.size
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Starts the clock anew, after something that is not training."""
        self._since = time.perf_counter()

    def waiting(self, get: Callable[[], Any]) -> Any:
        """`get()`, its time counted as waiting for data."""
        start = time.perf_counter()
        result = get()
        self._waited += time.perf_counter() - start
        return result

    def count_step(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        self._steps += 1

    def read(self) -> dict[str, float]:
        """tokens_per_second, step_seconds, data_wait (share of the time) and, on a known device, mfu."""
        speed = self._steps * self._tokens_per_step / self._seconds
        values = {
            "tokens_per_second": speed,
            "step_seconds": self._seconds / self._steps,
            "data_wait": min(1.0, self._waited / self._seconds),
        }
        if self._peak is not None:
            values["mfu"] = speed * self._flops_per_token / self._peak
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        return values


class Stop:
    """Which signal has asked the run to stop, if one has."""

    signal: int | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM let the running step finish and be saved; a second one stops at once."""
    stop = Stop()

    def ask(number: int, _frame: Any) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number
        tqdm.write("stopping after this step and saving; once more stops at once, without saving")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
