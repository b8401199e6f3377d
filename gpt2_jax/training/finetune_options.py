"""The options of fine-tuning: what a run starts from, which parameters it trains, and how fast."""

import dataclasses
import re

from gpt2_jax.errors import InputError, check, one_line, shown


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """What the first parameters are, which of them are trained, and how fast; by default new ones, all of them alike.

    Parameters have names such as "h.attn.c_attn.kernel"; the blocks are stacked, so that a name is that of all layers.

    Attributes:
      start: what the run starts from: a folder or file of GPT-2's weights, a hub id ("openai-community/gpt2", with "@"
        and a branch, tag or commit after it to pin it), or the workdir of a run ("runs/mine", with "@best", "@latest"
        or "@1000" after it; the best by validation loss if there is one, else the latest). "" is from scratch. The
        model's sizes are the start's, and so is the tokenizer with `data.tokenizer="start"`.
      train: regular expression searched in parameter names: those found are trained, all others stay as they are, need
        no gradient and no optimizer state; "" trains all.
      freeze: the same of those that are not trained, also where `train` finds them; "" freezes none.
      freeze_layers: so many of the lowest blocks stay as they are, too. They are part of stacks that are trained, so
        that this saves neither time nor memory, unless it is all of them. Embeddings are frozen by `freeze`: "^w[tp]e".
      layer_decay: the learning rate of each block is that of the one above times this, in (0, 1]: layer-wise learning
        rate decay (Clark et al., 2020, ELECTRA). The embeddings, a tied output layer among them, are below the lowest
        block; `ln_f` and an output layer of its own, above the highest, have the whole rate. 1 is off.
    """

    start: str = ""
    train: str = ""
    freeze: str = ""
    freeze_layers: int = 0
    layer_decay: float = 1.0

    def __post_init__(self):
        for name in ("train", "freeze"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise InputError(
                    f"finetune.{name} is {shown(getattr(self, name))}; it must be a regular expression "
                    f"({one_line(error)})"
                ) from None
        check(self.freeze_layers >= 0, "finetune.freeze_layers", self.freeze_layers, "0 (none) or more")
        check(0 < self.layer_decay <= 1, "finetune.layer_decay", self.layer_decay, "in (0, 1]; 1 is off")
