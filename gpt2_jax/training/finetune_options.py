"""The options of fine-tuning: what a run starts from, which parameters it trains, and how fast."""

import dataclasses
import re

from gpt2_jax.errors import InputError, check, one_line, shown

ADAPTERS = r"\.lora_[ab]$"  # names of adapters' parameters


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
            _check_pattern(f"finetune.{name}", getattr(self, name))
        check(self.freeze_layers >= 0, "finetune.freeze_layers", self.freeze_layers, "0 (none) or more")
        check(0 < self.layer_decay <= 1, "finetune.layer_decay", self.layer_decay, "in (0, 1]; 1 is off")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021): of the start's kernels only a product A B that is added to them is trained.

    Attributes:
      rank: of the products; 0 trains the parameters themselves.
      alpha: the product is multiplied by alpha / rank.
      dropout: of what goes into the product.
      targets: regular expression searched in the names of the blocks' linear layers, h.attn.c_attn, h.attn.c_proj,
        h.mlp.c_fc and h.mlp.c_proj: those found get an adapter.
      rslora: alpha over the root of the rank instead, rank-stabilised (Kalajdzievski, 2023).
      also_train: regular expression searched in parameter names such as "wte.embedding": those found are trained whole,
        beside the adapters; "" is none. PEFT has them as `modules_to_save`.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = r"attn\.c_attn"
    rslora: bool = False
    also_train: str = ""

    def __post_init__(self):
        check(self.rank >= 0, "lora.rank", self.rank, "0 (no adapters) or more")
        check(0 < self.alpha < float("inf"), "lora.alpha", self.alpha, "above 0, and finite")
        check(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")
        for name in ("targets", "also_train"):
            _check_pattern(f"lora.{name}", getattr(self, name))
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), f"left at {field.default!r} where lora.rank is 0: no adapters"
            check(self.rank > 0 or value == field.default, f"lora.{field.name}", value, wanted)

    @property
    def trained(self) -> str:
        """A regular expression for all that is trained."""
        return rf"{ADAPTERS}|{self.also_train}" if self.also_train else ADAPTERS

    @property
    def scale(self) -> float:
        """The factor of the products."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def _check_pattern(option: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{option} is {shown(pattern)}; it must be a regular expression ({one_line(error)})") from None
