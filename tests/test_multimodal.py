"""The model that reads images, and captions by every way of generating."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt2_jax
from gpt2_jax.errors import InputError
from gpt2_jax.generation import sampler
from gpt2_jax.image_language_model import ImageLanguageModel
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.model import GPT2, parameter_names, unstack
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.multimodal import FIRST_ID, ImageGPT2, alone, completion
from gpt2_jax.tokenizer_training import train_characters
from gpt2_jax.training.step import sum_of_losses

CONFIG = GPT2Config(
    vocab_size=28, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip
IMAGE = ImageConfig(
    source="digits", size=8, channels=1, patch_size=4, n_embd=16, n_layer=1, n_head=2, prefix_length=3,
)  # fmt: skip
K = IMAGE.tokens
KINDS = {
    "pooled": IMAGE,
    "patches": dataclasses.replace(IMAGE, prefix_length=0, prefix_hidden=24, class_token=True, pre_norm=True),
    "features": dataclasses.replace(IMAGE, features=5),
}


def model_of(image, config=CONFIG):
    make = jax.jit(lambda key: completion(image)(GPT2(config, key), key))
    return make(jax.random.key(0))


def images_of(image, count):
    rng = np.random.default_rng(0)
    if image.features:
        return rng.normal(size=(count, *image.shape)).astype(np.float32)
    return rng.integers(0, 256, (count, *image.shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def lm():
    return ImageLanguageModel(model_of(IMAGE), train_characters(["a handwritten three five xyz jklmbcqu"]))


@pytest.fixture(scope="module")
def images():
    return [*images_of(IMAGE, 1), *(np.full(IMAGE.shape, grey, np.uint8) for grey in (0, 255))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_its_embeddings_and_all_else_is_gpt2(kind):
    """Logits against GPT-2's own on embeddings that are put in by hand; and shown images against those of rows."""
    image = KINDS[kind]
    model, k = model_of(image), image.tokens
    assert k == {"patches": 4}.get(kind, 3)
    pixels, text = images_of(image, 2), np.array([[3, 1, 4], [1, 5, 9]])
    rows = np.concatenate([np.broadcast_to(FIRST_ID + np.arange(k), (2, k)), text], axis=1)

    numbered = rows + np.where(rows >= FIRST_ID, k * np.arange(2)[:, None], 0)

    class ByHand(GPT2):
        def _look_up(self, _):
            return jnp.concatenate([seen, self.wte.embedding[...][text]], axis=1)

    @jax.jit
    def logits(model, pixels):
        nonlocal seen
        seen = model.read(pixels)
        by_hand = alone(model)
        by_hand.__class__ = ByHand
        shown = unstack(model.seeing(seen.reshape(2 * k, -1)))
        states = by_hand.hidden(rows), model.hidden(rows, images=pixels), shown.prefill(numbered, 8)[0]
        return [model.head(x)[..., : CONFIG.vocab_size] for x in states]

    seen = None
    wanted, *others = logits(model, pixels)
    for got in others:
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.abs(wanted[0] - logits(model, pixels[::-1])[1][0]).max() > 1e-2


of_text = jax.jit(lambda model: model(np.array([[1, 2, 3]])))


def test_text_alone_is_what_the_gpt2_says(lm):
    gpt2 = lm.text_model().model
    assert type(gpt2) is GPT2 and isinstance(lm.model, ImageGPT2) and alone(gpt2) is gpt2
    np.testing.assert_array_equal(of_text(lm.model), of_text(gpt2))
    names = set(jax.tree.leaves(parameter_names(lm.model)))
    own = {name for name in names if not name.startswith(("vision.", "prefix."))}
    assert own == set(jax.tree.leaves(parameter_names(gpt2))) and len(own) < len(names)


def test_gradients_are_of_what_counts():
    """Of a row of text alone nothing reaches what reads images; of one with an image the loss is of the caption."""
    model, pixels = model_of(IMAGE), images_of(IMAGE, 1)
    row = np.concatenate([FIRST_ID + np.arange(K), [3, 1, 4, 27]])[None].astype(np.int32)
    mask = np.array([[False, False, True, True, True, False]])
    loss = jax.jit(jax.value_and_grad(sum_of_losses))
    total, grads = loss(model, {"tokens": row, "mask": mask, "images": pixels})
    logits = jax.jit(lambda model: model.head(model.hidden(row[:, :-1], images=pixels)))(model)
    logits = np.asarray(logits)[0, :, : CONFIG.vocab_size]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert float(total) == pytest.approx(-sum(logprobs[at, row[0, at + 1]] for at in (2, 3, 4)), rel=1e-5)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves((grads.vision, grads.prefix)))
    text = np.array([[1, 2, 3, 4, 5, 6, 7]], np.int32)
    _, grads = loss(model, {"tokens": text, "mask": ~mask, "images": pixels})
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves((grads.vision, grads.prefix)))


logits_of = jax.jit(lambda model, rows, images: model.head(model.hidden(rows, images=images)))


def greedy(lm, image, prompt, count):
    """Token by token, through the whole model anew each time; past the context, after the image its later half."""
    text, offset, context = lm.tokenizer.encode(prompt), 0, lm.config.n_positions
    for _ in range(count):
        if (length := K + len(text)) - offset > context:
            offset = length - context // 2
        window = [*range(FIRST_ID, FIRST_ID + K), *text[offset:]]
        row = np.zeros((1, context), np.int32)
        row[0, : len(window)] = window
        text.append(
            int(
                np.asarray(logits_of(lm.model, row, image[None]))[
                    0, len(window) - 1, : lm.tokenizer.end_of_text
                ].argmax()
            )
        )
    return text


def test_greedy_captions_are_those_of_the_whole_model(lm, images):
    """Of several images with a prompt each, past the context, whose head the image stays."""
    prompts = ["", "a", "thre"]
    options = {"temperature": 0, "max_new_tokens": 24, "beyond_context": "slide"}
    options |= {"suppress_tokens": [lm.tokenizer.end_of_text]}
    found = lm.caption(images, prompts, **options)
    for image, prompt, caption in zip(images, prompts, found):
        assert caption.tokens.tolist() == greedy(lm, image, prompt, 24)
        assert caption.text == prompt + caption.completion
    assert len({caption.completion for caption in found}) > 1


WAYS = {
    "sampling": {"temperature": 0.9, "top_k": 5, "seed": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "beams": {"num_beams": 2, "temperature": 0.0},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "guidance": {"temperature": 0.0, "guidance_scale": 1.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_follows_its_own_image(lm, images, way):
    options = WAYS[way] | {"max_new_tokens": 6, "suppress_tokens": [lm.tokenizer.end_of_text]}
    found, turned = lm.caption(images, **options), lm.caption(images[::-1], **options)
    assert [caption.text for caption in found] == [caption.text for caption in turned[::-1]]
    assert all((caption.tokens < lm.config.vocab_size).all() for caption in found)
    assert len({caption.text for caption in found}) > 1


def test_samples_streams_stops_and_logprobs(lm, images):
    greedy = {"temperature": 0, "max_new_tokens": 6, "suppress_tokens": [lm.tokenizer.end_of_text]}
    several = lm.caption(images[0], num_return_sequences=3, **greedy | {"temperature": 1.5})
    assert len(several) == 3 and len({caption.text for caption in several}) > 1
    texts = [caption.text for caption in lm.caption(images, **greedy)]
    assert "".join(lm.stream_caption(images[1], **greedy)) == texts[1]
    noted = lm.caption(images, logprobs=2, stop_strings=[texts[1][3]], **greedy)
    assert noted[1].stop_reason == "stop_string"
    assert [caption.completion for caption in noted] == [text.partition(texts[1][3])[0] for text in texts]
    scored = lm.caption_logprobs(images, texts, batch_size=2)
    assert [len(logprobs) for logprobs in scored] == [7, 7, 7]
    for caption, logprobs in zip(noted, scored):
        np.testing.assert_allclose(caption.logprobs, logprobs[: len(caption.logprobs)], atol=1e-4)
    mean = np.concatenate(scored).mean()
    assert lm.caption_perplexity(images, texts, batch_size=2) == pytest.approx(np.exp(-mean), rel=1e-5)


def test_other_images_compile_nothing(lm, images):
    suppressed = {"suppress_tokens": [lm.tokenizer.end_of_text]}  # as elsewhere, and so compiled already
    lm.caption(images[0], temperature=0.5, max_new_tokens=4, **suppressed)
    before = sampler.fill._cache_size(), sampler.advance._cache_size()
    lm.caption(images[1], "thre", temperature=0.9, max_new_tokens=3, seed=5, **suppressed)
    assert before == (sampler.fill._cache_size(), sampler.advance._cache_size())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm, images: lm.caption([]), r"there are no images in the list; give at least one"),
        (
            lambda lm, images: lm.caption(images, ["a"]),
            r"there are 3 images and 1 prompts; give one prompt, or as many",
        ),
        (
            lambda lm, images: lm.caption(images[0], control="digits"),
            r"control is 'digits', and captions have no control codes; leave it out",
        ),
        (
            lambda lm, images: lm.caption(images[0], "a" * 13),
            r"the prompt has 16 tokens and the model's context is 16; at most 15 leave room",
        ),
        (
            lambda lm, images: lm.caption_logprobs(images, ["a"]),
            r"there are 3 images and 1 captions; give one caption an image",
        ),
        (
            lambda lm, images: lm.caption_logprobs(images[:1], ["a" * 14]),
            r"a caption has 14 tokens; after an image of 3 positions there may be 13",
        ),
        (lambda lm, images: gpt2_jax.save(lm, "never"), r"keep its run, which is one, or write its GPT-2 alone"),
        (lambda lm, images: gpt2_jax.resize(lm.model, n_positions=8), r"a model that reads images keeps its vocab"),
    ],
)
def test_what_is_refused(lm, images, call, message):
    with pytest.raises(InputError, match=message):
        call(lm, images)
