"""The options of images: where they come from, how they are read, and what a GPT-2 gets of them."""

import dataclasses
import math
from typing import Literal

from gpt2_jax.errors import check
from gpt2_jax.model_config import ACTIVATIONS, GPT2Config

LARGEST_SIDE = 4096  # pixels, and numbers of any other size here


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Images before the text: through a small ViT to a prefix of embeddings (Tsimpoukelli et al., 2021, Frozen).

    GPT-2's parameters keep their names; those of the ViT begin with "vision.", those of what makes the prefix with
    "prefix.". `finetune.freeze='^(wte|wpe|h|ln_f)[.]'` leaves the GPT-2 as it is, as Frozen and ClipCap do.

    Attributes:
      source: where images with captions come from: "digits" (scikit-learn's, "a handwritten three"), "folder", a name
        of `gpt2_jax.data.captions.REGISTRY` or any hub id; "" is text alone, and leaves all else at its default.
      paths: with "folder", the folder of images, with captions.jsonl, captions.csv, metadata.jsonl or metadata.csv in
        it, or a .txt beside each image; of a dataset of the hub a folder that holds a copy.
      subset, split, revision: of a dataset of the hub.
      image_key: the column or field of images; "" is the source's own, "image" or "file_name".
      caption_key: that of captions, each a text or a list of texts; several with commas between them. "" is the
        source's own, "caption" or "text".
      name_key: of a dataset of the hub the column that says which image a row has, where an image has several rows, so
        that none is on both sides of what is held out; "" is the source's own, or each row is an image of its own.
      share: of the rows of each batch that are images with captions, in (0, 1]; the others are windows of the text that
        the group `data` says. Of 1 that group is of no use but for its tokenizer.
      validation_fraction: the share of the images that is held out, by the hash of their names; in (0, 1).
      shift: training images are moved by up to so many pixels each way, at random.
      size: pixels of a side; images are scaled to it, and what a square lacks of their longer side is cut off.
      channels: 1 is grey, 3 is colour.
      mean, std: pixels from 0 to 1 minus the mean are divided by std: a number, or one a channel with commas.
      features: numbers of a vector that stands for each image, computed before by another model (.npy files, or lists
        in a column); 0 is pixels. With it there is no ViT.
      weights: a folder with config.json and model.safetensors of a CLIP or a ViT, as Hugging Face writes them, from
        which the ViT starts, and which says its sizes; "" is from scratch.
      patch_size: pixels of a patch's side; must divide `size`.
      n_embd, n_layer, n_head, n_inner: of the ViT; an n_inner of 0 is 4 * n_embd.
      activation_function, layer_norm_epsilon: of its blocks.
      class_token: it has a token of its own, whose state stands for the image; else the mean of the patches does.
      pre_norm: it has a layer norm before its blocks, as CLIP's.
      prefix_length: embeddings that stand for an image, all made of one vector (Frozen, ClipCap); 0 makes one of each
        patch (as in LLaVA).
      prefix_hidden: width of a hidden layer with tanh on the way from there (ClipCap's MLP); 0 is a linear map.
    """

    source: str = ""
    paths: str = ""
    subset: str = ""
    split: str = "train"
    revision: str = ""
    image_key: str = ""
    caption_key: str = ""
    name_key: str = ""
    share: float = 1.0
    validation_fraction: float = 0.1
    shift: int = 0
    size: int = 224
    channels: Literal[1, 3] = 3
    mean: str = "0.5"
    std: str = "0.5"
    features: int = 0
    weights: str = ""
    patch_size: int = 16
    n_embd: int = 384
    n_layer: int = 6
    n_head: int = 6
    n_inner: int = 0
    activation_function: str = "gelu"
    layer_norm_epsilon: float = 1e-6
    class_token: bool = False
    pre_norm: bool = False
    prefix_length: int = 10
    prefix_hidden: int = 0

    def __post_init__(self):
        if not self.source:
            for field in dataclasses.fields(self):
                value, wanted = getattr(self, field.name), f"left at {field.default!r} where image.source is ''"
                check(value == field.default, f"image.{field.name}", value, wanted)
            return
        check(bool(self.paths) or self.source != "folder", "image.paths", self.paths, "a folder, with image.source")
        check(
            not self.paths or self.source != "digits", "image.paths", self.paths, "empty: digits come with scikit-learn"
        )
        check(0 < self.share <= 1, "image.share", self.share, "in (0, 1]")
        check(0 < self.validation_fraction < 1, "image.validation_fraction", self.validation_fraction, "in (0, 1)")
        for name in ("size", "patch_size", "n_embd", "n_layer", "n_head"):
            value = getattr(self, name)
            check(1 <= value <= LARGEST_SIDE, f"image.{name}", value, f"from 1 to {LARGEST_SIDE}")
        for name in ("features", "n_inner", "prefix_length", "prefix_hidden"):
            value = getattr(self, name)
            check(0 <= value <= 16 * LARGEST_SIDE, f"image.{name}", value, f"from 0 to {16 * LARGEST_SIDE}")
        check(self.size % self.patch_size == 0, "image.patch_size", self.patch_size, f"a divisor of size ({self.size})")
        check(self.n_embd % self.n_head == 0, "image.n_head", self.n_head, f"a divisor of n_embd ({self.n_embd})")
        check(
            self.activation_function in ACTIVATIONS,
            "image.activation_function",
            self.activation_function,
            f"one of {', '.join(ACTIVATIONS)}",
        )
        epsilon = self.layer_norm_epsilon
        check(0 < epsilon < math.inf, "image.layer_norm_epsilon", epsilon, "above 0, and finite")
        check(0 <= self.shift < self.size, "image.shift", self.shift, f"from 0 to {self.size - 1}")
        for name in ("mean", "std"):
            self.of_channels(name)
        if self.features:
            check(self.prefix_length > 0, "image.prefix_length", self.prefix_length, "1 or more with image.features")
            check(self.weights == "", "image.weights", self.weights, "empty with image.features, which need no ViT")
            check(self.shift == 0, "image.shift", self.shift, "0 with image.features")

    def of_channels(self, name: str) -> tuple[float, ...]:
        """`mean` or `std`, a number a channel.

        Raises:
          InputError: it is not that.
        """
        value = getattr(self, name)
        try:
            numbers = tuple(map(float, value.split(",")))
        except ValueError:
            numbers = ()
        least = 0 if name == "std" else -math.inf
        right = len(numbers) in (1, self.channels) and all(least < number < math.inf for number in numbers)
        what = f"a number, or {self.channels} with commas between them" + ", above 0" * (name == "std")
        check(right, f"image.{name}", value, what)
        return numbers * (self.channels // len(numbers))

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Positions that an image takes before the text, K."""
        return self.prefix_length or self.patches

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what a batch holds of an image: uint8 pixels [S, S, channels], or float32 features."""
        return (self.features,) if self.features else (self.size, self.size, self.channels)

    def blocks(self, config: GPT2Config) -> GPT2Config:
        """The ViT's blocks are GPT-2's: their sizes, in the type and with the recomputation of the model beside it."""
        return GPT2Config(
            vocab_size=1, n_positions=self.patches + self.class_token, n_embd=self.n_embd, n_layer=self.n_layer,
            n_head=self.n_head, n_inner=self.n_inner or None, activation_function=self.activation_function,
            layer_norm_epsilon=self.layer_norm_epsilon, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            initializer_range=self.n_embd**-0.5, dtype=config.dtype, remat=config.remat, scan_unroll=1,
        )  # fmt: skip
