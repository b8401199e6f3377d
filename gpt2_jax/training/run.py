"""The parts of a training run: what is built once, and what the loop calls with it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from clu import parameter_overview
from tqdm import tqdm

from gpt2_jax import vision_files
from gpt2_jax.config import Config
from gpt2_jax.data import captioned, dataset
from gpt2_jax.data.corpus import Batches, Corpus, open_corpus
from gpt2_jax.data.documents import left_out_of
from gpt2_jax.data.layout import Progress
from gpt2_jax.data.rows import Rows
from gpt2_jax.errors import InputError
from gpt2_jax.image_language_model import ImageLanguageModel, speaking
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.model import GPT2, num_parameters, parameter_names
from gpt2_jax.sharding import global_batch, make_mesh, on_mesh, on_one_device, rows_of
from gpt2_jax.tokenizer import Tokenizer
from gpt2_jax.training import adapted, metrics
from gpt2_jax.training.accounting import ALIVE
from gpt2_jax.training.changes import differences
from gpt2_jax.training.checkpoint import Checkpoints, abstract_state
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.early_stopping import EarlyStopping
from gpt2_jax.training.program import Program, eval_batch_size
from gpt2_jax.training.selection import split
from gpt2_jax.training.start import Start, find_start
from gpt2_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last, and the parts of a run that use it.

    Attributes:
      config: with the vocabulary's size filled in.
      corpus: tokens and tokenizer.
      program: what is jitted, and the mesh of all devices.
      start: whose parameters the first ones are; None: they are drawn.
      train_step, eval_step: those of the program, with the mesh in force.
      say: prints a line above the progress bar, on the first process.
    """

    config: Config
    corpus: Corpus
    program: Program
    start: Start | None
    train_step: Callable
    eval_step: Callable
    say: Callable[[str], None]

    @classmethod
    def open(cls, options: dict[str, dict[str, Any]], workdir: Path) -> "Run":
        """Checks the options, prepares the data and builds what is jitted; see `train`."""
        if options.get("image", {}).get("weights"):
            options = vision_files.sized(options, saved_images(workdir))
        unbound = Config.from_dict(options)
        if unbound.checkpoint.on_failure == "go_on" and jax.process_count() > 1:
            raise InputError(
                "checkpoint.on_failure is 'go_on', which one process alone can do: of several, those that could save "
                "would wait for the one that could not; leave it at 'stop'"
            )
        say = tqdm.write if jax.process_index() == 0 else lambda _: None
        mesh = make_mesh(unbound.mesh)
        start, own_tokenizer, entries = find_start(unbound, workdir), None, 0
        if start is not None:
            options, own_tokenizer, entries = start.sized(options), start.tokenizer, start.config.vocab_size
            unbound = Config.from_dict(options)
        rows = rows_of(mesh, jax.process_index())
        corpus = open_data(unbound, workdir, rows, say, own_tokenizer)
        if start is not None:
            start.check_fits(corpus.tokenizer, unbound.data.tokenizer)
        config = bind_vocabulary(options, max(len(corpus.tokenizer), entries))
        adapted.check_images_trained(config)
        if start is not None:
            adapted.check_new_rows(config, start.config.vocab_size)
        corpus.tokenizer.encode(config.training.sample_prompt)  # raises now rather than at the first sample
        program = Program.of(config, mesh)
        return cls(
            config=config,
            corpus=corpus,
            program=program,
            start=start,
            train_step=on_mesh(mesh, program.train_step),
            eval_step=on_mesh(mesh, program.eval_step),
            say=say,
        )

    def first_state(self, checkpoints: CheckpointWriter) -> TrainState:
        """Where the parameters come from, in this order: 1. resume, 2. fine-tune a model, 3. start from scratch."""
        if not checkpoints.steps:
            return self.fresh_state()
        step = checkpoints.find_to_go_on(self.tell)
        saved, _ = checkpoints.read_json(step)
        if different := differences(saved, self.config.to_dict()):
            raise InputError(
                f"{checkpoints.directory} is of another config: {'; '.join(different)}. Nothing was changed: give the "
                "same options to go on with that run, or another --workdir to start anew"
            )
        state = self.restored(checkpoints, step)
        self.say(f"resumed from step {step} of {checkpoints.directory}: parameters, optimizer, key and data order")
        return state

    def fresh_state(self) -> TrainState:
        """The state that the seed says, of the parameters of `start` if there is one."""
        init, shardings = self.program.init, self.program.shardings
        if self.start is None:
            return self.with_vision(jax.jit(init, out_shardings=shardings)())
        self.say(f"fine-tuning starts from {self.start.name}")
        model = self.start.load(self.program.model, self.program.mesh)
        return self.with_vision(jax.jit(init, out_shardings=shardings, donate_argnums=0)(model))

    def with_vision(self, state: TrainState) -> TrainState:
        """The state with the ViT of `image.weights`, if there is one."""
        image, shardings = self.config.image, self.program.shardings.model
        if not image.weights:
            return state
        leaves = vision_files.named(image.weights, image, self.program.model)
        put = lambda name, x, where: jax.device_put(leaves[name], where) if name in leaves else x
        return state._replace(model=jax.tree.map(put, parameter_names(state.model), state.model, shardings))

    def restored(self, checkpoints: Checkpoints, step: int) -> TrainState:
        """The state of a checkpoint."""
        config, abstract = self.config, abstract_state(self.program.shapes, self.program.shardings)
        if not config.lora.rank:
            return checkpoints.restore(step, abstract)
        state = checkpoints.restore(step, abstract._replace(model=split(abstract.model, config.selection)[0]))
        sizes, mesh = self.program.model, self.program.mesh
        return state._replace(model=adapted.with_base(state.model, checkpoints, step, config, sizes, mesh))

    def batches(self, step: int, checkpoints: Checkpoints) -> Batches:
        """This process's rows of the training batches, from `step` on."""
        streamed = self.config.data.road == "stream" and step in checkpoints.steps
        return self.corpus.batches(step, checkpoints.read_stream(step) if streamed else None)

    def early_stopping(self, step: int, checkpoints: Checkpoints) -> EarlyStopping:
        """What is known of the validation losses at `step`, where the run begins or goes on."""
        again = step == 0 or step not in checkpoints.steps  # at step 0 everything is measured again
        saved = None if again else checkpoints.read_evaluations(step)
        return EarlyStopping.of(self.config.evaluation.patience, saved)

    def validate(self, state: TrainState, writer: metrics.MetricWriter) -> float:
        """The mean loss over the validation windows in nats a token, written and shown with what follows from it.

        Of a mixture it is the mean over the windows of all sources; that of each source is written beside it. Where it
        is not finite nothing is written, and these parameters must not become a checkpoint.

        Raises:
          InputError: nothing there is learnt.
        """
        sums = {name: self.sums(name, state) for name in self.corpus.held_out}
        step, count = int(state.step), sum(count for _, count in sums.values())
        nats = math.fsum(nats for nats, _ in sums.values())
        loss = nats / count
        if not math.isfinite(loss):
            return loss
        size = sum(
            count * self.corpus.held_out[name].bytes_per_token("validation") for name, (_, count) in sums.items()
        )
        bits_per_byte = nats / math.log(2) / size
        perplexity = math.exp(min(loss, 700.0))  # the largest that a float64 holds
        each = {name: nats / count for name, (nats, count) in sums.items()} if len(sums) > 1 else {}
        scalars = {"val_loss": loss, "val_perplexity": perplexity, "val_bits_per_byte": bits_per_byte}
        writer.write_scalars(step, scalars | {f"val_loss/{name}": value for name, value in each.items()})
        named = f"  ({', '.join(f'{name} {value:.4f}' for name, value in each.items())})" if each else ""
        self.say(
            f"step {step:>6}  val loss {loss:.4f}{named}  perplexity {perplexity:.2f}  bits/byte {bits_per_byte:.3f}"
        )
        return loss

    def sums(self, name: str, state: TrainState) -> tuple[float, int]:
        """The summed loss over the validation windows of a source, in nats, and how many tokens count.

        Raises:
          InputError: none counts.
        """
        held_out = self.corpus.held_out[name]
        of_images = isinstance(held_out, captioned.HeldOutCaptions)
        windows = (captioned if of_images else dataset).evaluation_batches(
            held_out,
            batch_size=eval_batch_size(self.config),
            sequence_length=self.config.sequence_length,
            windows=self.config.evaluation.windows,
            rows=rows_of(self.program.mesh, jax.process_index()),
            mask_documents=self.config.data.mask_documents,
            restart_positions=self.config.data.restart_positions,
        )
        sums = [self.eval_step(state.model, global_batch(batch, self.program.mesh)) for batch in windows]
        count = 0
        for s in sums:
            count += int(s["count"])
            jax.monitoring.record_event(ALIVE)
        if count == 0:
            raise InputError(
                f"the validation windows of {name} hold prompts alone, of which nothing is learnt; raise"
                f" --config.evaluation.windows ({self.config.evaluation.windows}) or --config.data.validation_fraction"
            )
        return math.fsum(float(s["loss"]) for s in sums), count

    def show_sample(self, state: TrainState, writer: metrics.MetricWriter) -> None:
        """Lets the model write, on the first process."""
        config = self.config
        if config.training.sample_tokens == 0:
            return
        model = on_one_device(state.model, self.program.mesh)
        if jax.process_index() == 0:
            lm = speaking(model, self.corpus.tokenizer)
            if isinstance(lm, ImageLanguageModel):
                texts = self.corpus.held_out[captioned.KEY].shown(lm)
                writer.write_texts(int(state.step), {"captions": texts})
                self.say(f"--- captions at step {int(state.step)} ---\n{texts}\n---")
            if captioned.KEY in self.corpus.held_out and len(self.corpus.held_out) == 1:
                return
            prompt = lm.tokenizer.encode(config.training.sample_prompt) or [lm.tokenizer.end_of_text]
            prompt = prompt[: config.model.n_positions - 1]
            room = min(config.training.sample_tokens, config.model.n_positions - len(prompt))
            text = lm.generate(prompt, max_new_tokens=room, temperature=0.8, top_p=0.95, seed=config.training.seed).text
            writer.write_texts(int(state.step), {"sample": text})
            self.say(f"--- sample at step {int(state.step)} ---\n{text}\n---")

    def save(
        self,
        state: TrainState,
        checkpoints: CheckpointWriter,
        val_loss: float | None,
        batches: Batches,
        stopping: EarlyStopping,
    ) -> None:
        """Starts a checkpoint; one without a validation loss is never the best, and one of adapters has no base."""
        config, tokenizer, base = self.config.to_dict(), self.corpus.tokenizer.to_json(), None
        if self.config.lora.rank:
            trained, frozen = split(state.model, self.config.selection)
            state, base = state._replace(model=trained), {"fingerprint": adapted.fingerprint(frozen)}
        checkpoints.save(state, config, tokenizer, val_loss, self.corpus.saved(batches), stopping.saved(), base)

    def tell_of(self, counts: Mapping[str, int]) -> None:
        """Says how many documents were read for this process's batches and how many left out, if any were."""
        if counts:
            where = f" in process 0 of {jax.process_count()}" if jax.process_count() > 1 else ""
            left_out = left_out_of(counts) or "none"
            self.say(f"documents read since the start{where}: {counts.get('kept', 0):,} kept; left out: {left_out}")

    def tell(self, line: str) -> None:
        """Says a line and logs it."""
        logging.info("%s", line)
        self.say(line)

    def describe(self, model: GPT2) -> None:
        """Logs what is about to run: parameters, data, devices."""
        device = self.program.mesh.devices.flat[0]
        leaves = dict(zip(jax.tree.leaves(parameter_names(model)), jax.tree.leaves(model)))
        statistics = "global" if jax.process_count() > 1 else True  # of parameters of which a process has a part alone
        overview = parameter_overview.get_parameter_overview(leaves, include_stats=statistics)
        logging.info("parameters (vocabulary padded):\n%s", overview)
        images, known = bool(self.config.image.source), metrics.peak_flops(device) is not None
        why = "with images" if images else f"the peak of {device} is not known"
        logging.info("mfu: %s", metrics.MFU_FORMULA if known and not images else f"not reported, {why}")
        tokens_per_step = self.config.training.batch_size * self.config.sequence_length
        count, trained = num_parameters(model), self.program.trained_parameters
        frozen = "" if trained == count else f", {trained:,} of them trained,"
        self.say(
            f"{count:,} parameters{frozen} on {dict(self.program.mesh.shape)} of {device.device_kind}; "
            f"{self.config.training.steps:,} steps of {tokens_per_step:,} tokens"
        )


def saved_images(workdir: Path) -> dict[str, Any] | None:
    """What the run in a workdir says of its images; None: it has not saved anything yet."""
    if not (workdir / "checkpoints").is_dir():
        return None
    with Checkpoints(workdir) as checkpoints:
        if not checkpoints.steps:
            return None
        groups, _ = checkpoints.read_json(checkpoints.find(None, lambda _: None, ("config", "tokenizer")))
    return dataclasses.asdict(ImageConfig()) | groups.get("image", {})


def open_data(config: Config, workdir: Path, rows: Rows, say: Progress, start: Tokenizer | None) -> Corpus:
    """The corpus of a run: text, images with captions, or both; see `open_corpus`."""
    if not config.image.source:
        return open_corpus(config, data_folder(config, workdir), rows, say, start)
    of_images, text = captioned.rows_of_images(config, rows), None
    if of_images < config.training.batch_size:
        of_text = config.training.batch_size - of_images
        text = open_corpus(config, data_folder(config, workdir), rows, say, start, of_text)
    return captioned.open_captioned(config, workdir, rows, say, start, text)


def data_folder(config: Config, workdir: Path) -> Path:
    """Where the run's tokens are."""
    return Path(config.data.prepared).expanduser() if config.data.prepared else workdir / "data"


def bind_vocabulary(options: dict[str, dict[str, Any]], tokenizer_size: int) -> Config:
    """The config with `model.vocab_size` taken from the tokenizer where it is 0, and large enough for it."""
    config = Config.from_dict(options, vocab_size=tokenizer_size)
    if config.model.vocab_size < tokenizer_size:
        raise InputError(
            f"model.vocab_size is {config.model.vocab_size} and the tokenizer has {tokenizer_size} entries; set it to "
            f"0 (the tokenizer's) or to at least {tokenizer_size}"
        )
    return config


def check_finite(name: str, value: float, step: int, config: Config) -> None:
    """Raises `InputError` unless `value` is finite."""
    if not math.isfinite(value):
        raise InputError(
            f"the {name} of step {step} is {value}; the checkpoints from before it are untouched: run again with a "
            f"lower optimizer.learning_rate ({config.optimizer.learning_rate}) or a longer optimizer.warmup_steps "
            f"({config.optimizer.warmup_steps})"
        )
