"""Images with captions: their sources, what is held out, decoding within bounds, and batches by (seed, step)."""

import csv
import dataclasses
import functools
import io
import json

import numpy as np
import pytest
from PIL import Image

from gpt2_jax.config import Config
from gpt2_jax.data.captioned import CaptionBatches, Captions, HeldOutCaptions, evaluation_batches, rows_of_images
from gpt2_jax.data.captioned import train_rows as rows_of_step
from gpt2_jax.data.captions import open_captions
from gpt2_jax.data.rows import ALL, Rows
from gpt2_jax.errors import InputError
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.multimodal import FIRST_ID
from gpt2_jax.pixels import MOST_PIXELS, pixels_of
from gpt2_jax.tokenizer_training import train_characters

DIGITS = ImageConfig(source="digits", size=8, channels=1, patch_size=4, prefix_length=3)
FOLDER = ImageConfig(source="folder", paths="images", size=8, patch_size=4)


def painted(shade, size=(8, 8)):
    return Image.new("RGB", size, (shade, 0, 255 - shade))


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def folder_of(path, count=20):
    path.mkdir(exist_ok=True)
    for i in range(count):
        painted(10 * i).save(path / f"{i}.png")
    return dataclasses.replace(FOLDER, paths=str(path))


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    opened, digits = open_captions(DIGITS), load_digits()
    assert len(opened) == 1797 and opened.captions[3] == ("a handwritten three",)
    pixels = np.stack([opened.pixels(i) for i in range(50)])[..., 0]
    np.testing.assert_allclose(pixels / 255 * 16, digits.images[:50], atol=0.04)
    train, held_out = opened.split()
    assert sorted(train + held_out) == list(range(1797)) and len(held_out) == 183
    assert {opened.captions[i] for i in held_out} == set(opened.captions)


@pytest.mark.parametrize("form", ["captions.jsonl", "metadata.jsonl", "captions.csv", "beside"])
def test_folders_in_every_form(tmp_path, form):
    options = folder_of(tmp_path / "images")
    image, text = ("file_name", "text") if form == "metadata.jsonl" else ("image", "caption")
    records = [{image: f"{i}.png", text: f"shade {i}"} for i in range(20)]
    if form.endswith(".jsonl"):
        records.append({image: "3.png", text: ["a third", "the third"]})
        (tmp_path / "images" / form).write_text("\n".join(map(json.dumps, records)) + "\n\n")
    elif form.endswith(".csv"):
        records += [{image: "3.png", text: "a third"}, {image: "3.png", text: "the third"}]
        with (tmp_path / "images" / form).open("w", newline="") as file:
            writer = csv.DictWriter(file, [image, text])
            writer.writeheader()
            writer.writerows(records)
    else:
        for i in range(20):
            (tmp_path / "images" / f"{i}.txt").write_text(f"shade {i}\n" + "a third\n\nthe third\n" * (i == 3))
    opened = open_captions(options)
    captions = dict(zip(opened.names, opened.captions))
    assert len(captions) == 20 and captions["3.png"] == ("shade 3", "a third", "the third")
    number = list(opened.names).index("7.png")
    assert opened.pixels(number)[0, 0].tolist() == [70, 0, 185]


def test_a_copy_of_a_hub_dataset(tmp_path, monkeypatch):
    """Parquet in the hub's layout: structs of bytes, several columns of captions; and lists of features."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = [{"bytes": png(painted(10 * i)), "path": f"{i}.png"} for i in range(20)]
    table = {"photo": images, "one": [f"shade {i}" for i in range(20)], "more": [["same", "again"]] * 20}
    table["which"] = [i // 2 for i in range(20)]
    table["vector"] = [[float(i), 0.5] for i in range(20)]
    features = datasets.Features(
        {"photo": datasets.Image(), "one": datasets.Value("string"), "more": datasets.List(datasets.Value("string")),
         "which": datasets.Value("int64"), "vector": datasets.List(datasets.Value("float32"))}
    )  # fmt: skip
    (tmp_path / "copy" / "data").mkdir(parents=True)
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    file = tmp_path / "copy" / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.table(table).replace_schema_metadata(metadata), file)
    options = dataclasses.replace(FOLDER, source="owner/name", paths=str(tmp_path / "copy"), image_key="photo")
    options = dataclasses.replace(options, caption_key="one, more")
    opened = open_captions(options)
    assert len(opened) == 20 and opened.captions[4] == ("shade 4", "same", "again")
    assert opened.pixels(4)[0, 0].tolist() == [40, 0, 215]
    features = open_captions(dataclasses.replace(options, image_key="vector", features=2))
    assert features.pixels(4).tolist() == [4.0, 0.5]
    named = open_captions(dataclasses.replace(options, name_key="which", validation_fraction=0.4))
    assert named.names[:3] == ["owner/name/train/0", "owner/name/train/0", "owner/name/train/1"]
    train, held_out = named.split()
    assert not {named.names[i] for i in train} & {named.names[i] for i in held_out}
    with pytest.raises(InputError, match=r"has no 'where', only .*; set --config\.image\.name_key"):
        open_captions(dataclasses.replace(options, name_key="where"))
    with pytest.raises(InputError, match=r"has no 'image or file_name', only .*; set --config\.image\.image_key"):
        open_captions(dataclasses.replace(options, image_key=""))
    with pytest.raises(InputError, match=r"copy, split 'nowhere', cannot be opened \(.*; check the id, subset and"):
        open_captions(dataclasses.replace(options, split="nowhere"))


def test_pixels_of_every_kind_of_image(tmp_path):
    image = painted(200, (16, 8))
    image.paste((1, 2, 3), (0, 0, 4, 8))  # cut off: the middle square stays
    image.save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), png(image), image, np.asarray(image)):
        assert (pixels_of(given, FOLDER) == [200, 0, 55]).all()
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (pixels_of(clear, FOLDER) == 255).all()
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for given in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(pixels_of(given, DIGITS)[..., 0], grey)
    assert pixels_of(np.zeros((20, 10), np.uint8), DIGITS).shape == (8, 8, 1)
    vector = dataclasses.replace(FOLDER, features=3)
    np.save(tmp_path / "v.npy", np.array([1.0, 2.0, 3.0]))
    assert pixels_of(tmp_path / "v.npy", vector).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", r"the image is no image of PNG, JPEG, .*; convert it to one of these"),
        (png(painted(1, (64, 64)))[:-40], r"the image cannot be read \(.*\); copy it again"),
        (np.zeros((8, 8)), r"the image is float64\[8, 8\]; an array must be uint8 \[height, width\]"),
        (np.zeros((8, 8, 2), np.uint8), r"the image is uint8\[8, 8, 2\]; an array must be"),
        (7, r"the image is 7; it must be a path, a PIL image, or an array"),
        ("nowhere.png", r"nowhere\.png cannot be read \(FileNotFoundError.*\); copy it again"),
        (Image.new("I", (8, 8)), r"the image has the mode I; it must have 8 bits a channel"),
        (png(Image.new("1", (MOST_PIXELS // 8000 + 1, 8000))), r"the image has 50,008,000 pixels; it may have 50,000"),
    ],
)
def test_images_that_are_refused(image, message):
    with pytest.raises(InputError, match=message):
        pixels_of(image, DIGITS)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(2), r"float64\[2\]; the model reads 3 finite numbers of each image"),
        (np.array([1.0, np.nan, 0.0]), r"the model reads 3 finite numbers"),
        (painted(1), r"the model reads 3 finite numbers"),
        ("nowhere.npy", r"nowhere\.npy is no \.npy file of a vector"),
    ],
)
def test_features_that_are_refused(vector, message):
    with pytest.raises(InputError, match=message):
        pixels_of(vector, dataclasses.replace(FOLDER, features=3))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['{"image": "0.png"}'],
            r"captions\.jsonl:1 has no 'caption or text', only .*; set --config\.image\.caption_key",
        ),
        (['{"image": "0.png", "caption": " "}'], r":1 has the captions \[' '\]; they must be texts, one or more"),
        (['{"image": "../0.png", "caption": "a"}'], r":1 names the image '\.\./0\.png'; it must be a file below"),
        (['{"image": "9.png", "caption": "a"}'], r":1 names the image '9\.png', which is not there; add it, or"),
        (['{"image": 3, "caption": "a"}'], r":1 has the image 3; it must be the name of a file"),
        (["no json"], r"captions\.jsonl:1 is not one JSON object"),
        ([], r"images has no captions: put captions\.jsonl there"),
    ],
)
def test_folders_that_are_refused(tmp_path, lines, message):
    options = folder_of(tmp_path / "images", 2)
    (tmp_path / "images" / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        open_captions(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "digit"}, r"image\.source is 'digit', which is no source and no hub id .*; did you mean 'digits'"),
        ({"source": "folder", "paths": "nowhere"}, r"image\.paths is 'nowhere', which is no folder; give one with"),
        ({"source": "owner/name", "paths": "nowhere"}, r"image\.paths is 'nowhere', .* that holds a copy of the data"),
    ],
)
def test_sources_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        open_captions(dataclasses.replace(DIGITS, **changes))


def test_a_split_with_nothing_in_it(tmp_path):
    options = folder_of(tmp_path / "images", 2)
    for i in range(2):
        (tmp_path / "images" / f"{i}.txt").write_text("a")
    with pytest.raises(InputError, match=r"of 2 images 0 are held out with image\.validation_fraction 1e-06; some"):
        open_captions(dataclasses.replace(options, validation_fraction=1e-6)).split()


@pytest.fixture(scope="module")
def captions():
    opened = open_captions(dataclasses.replace(DIGITS, shift=1))
    tokenizer = train_characters(text for own in opened.captions for text in own)
    return Captions.of(opened, range(40), tokenizer, 24), tokenizer


def test_rows_are_images_captions_and_an_end(captions):
    captions, tokenizer = captions
    tokens, mask, pixels = captions.row(3)
    text = tokenizer.encode("a handwritten three")
    end = [tokenizer.end_of_text] * (25 - 3 - len(text))
    assert tokens.tolist() == [FIRST_ID, FIRST_ID + 1, FIRST_ID + 2, *text, *end]
    assert tokens[1:][mask].tolist() == [*text, tokenizer.end_of_text]
    np.testing.assert_array_equal(pixels, captions.images.pixels(3))
    cut = dataclasses.replace(captions, T=10)
    assert cut.cut == 40 and cut.row(3)[0].tolist() == [*range(FIRST_ID, FIRST_ID + 3), *text[:7], end[0]]


def test_batches_are_a_function_of_seed_and_step(captions):
    """Every pair once an epoch, in another order; the same from any step on, of one process or of two."""
    captions, _ = captions
    rows = functools.partial(rows_of_step, captions, 8, np.arange(8))
    steps = [rows(0, step) for step in range(10)]
    seen = [sorted(row.tobytes() for step in part for row in step["tokens"]) for part in (steps[:5], steps[5:])]
    assert seen[0] == seen[1] == sorted(captions.row(i)[0].tobytes() for i in range(40))
    assert not np.array_equal(steps[0]["images"], steps[5]["images"])
    assert not np.array_equal(rows(1, 0)["tokens"], steps[0]["tokens"])
    batches = CaptionBatches(functools.partial(rows, 0), 3, None)
    for step in steps[3:6]:
        batch = next(batches)
        assert all(np.array_equal(batch[name], step[name]) for name in step)
    batches.close()
    parts = [rows_of_step(captions, 8, Rows.part(i, 2).of(8), 0, 2) for i in range(2)]
    for name in steps[2]:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), steps[2][name])


def test_held_out_pairs_come_once(captions):
    held_out = HeldOutCaptions(*captions)
    batches = list(evaluation_batches(held_out, batch_size=16))
    assert [int(batch["mask"].any(1).sum()) for batch in batches] == [16, 16, 8]
    assert all(batch["images"].shape == (16, 8, 8, 1) for batch in batches)
    assert len(list(evaluation_batches(held_out, batch_size=16, windows=10))) == 1
    sizes = [len(text) for own in captions[0].images.captions[:40] for text in own]
    assert held_out.bytes_per_token("validation") == pytest.approx(sum(sizes) / (sum(sizes) + 40))


def test_a_damaged_image_ends_the_batches_before_it(tmp_path):
    options = folder_of(tmp_path / "images")
    for i in range(20):
        (tmp_path / "images" / f"{i}.txt").write_text("a")
    opened = open_captions(options)
    captions = Captions.of(opened, range(20), train_characters(["a"]), 24)
    rows = functools.partial(rows_of_step, captions, 4, np.arange(4), 0)
    last = int(next(i for i in range(20) if (rows(4)["images"][3] == opened.pixels(i)).all()))
    (tmp_path / "images" / opened.names[last]).write_bytes(b"damaged")
    batches = CaptionBatches(rows, 0, None)
    assert batches.remaining(3) is None
    for left in (4, 3, 2, 1):
        assert batches.remaining(6) == left
        next(batches)
    assert batches.remaining(1) == 0
    with pytest.raises(InputError, match=r"\d+\.png is no image of PNG"):
        next(batches)
    batches.close()


def test_shares_that_no_batch_has():
    config = lambda share, size=8: Config.from_dict(
        {"image": dataclasses.asdict(DIGITS) | {"share": share}, "training": {"batch_size": size}}
    )
    assert [rows_of_images(config(share), ALL) for share in (1.0, 0.5, 0.3)] == [8, 4, 2]
    for share, rows in ((0.01, ALL), (0.99, ALL), (0.3, Rows.part(0, 4))):
        with pytest.raises(InputError, match=r"image\.share is .*; it must be such that of training\.batch_size \(8\)"):
            rows_of_images(config(share), rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ""}, r"image\.size is 8; it must be left at 224 where image\.source is ''"),
        ({"source": "folder"}, r"image\.paths is ''; it must be a folder"),
        ({"paths": "a"}, r"image\.paths is 'a'; it must be empty: digits come with scikit-learn"),
        ({"share": 0.0}, r"image\.share is 0\.0; it must be in \(0, 1\]"),
        ({"validation_fraction": 1.0}, r"image\.validation_fraction is 1\.0; it must be in \(0, 1\)"),
        ({"size": 0}, r"image\.size is 0; it must be from 1 to 4096"),
        ({"prefix_hidden": -1}, r"image\.prefix_hidden is -1; it must be from 0 to 65536"),
        ({"patch_size": 3}, r"image\.patch_size is 3; it must be a divisor of size \(8\)"),
        ({"n_head": 5}, r"image\.n_head is 5; it must be a divisor of n_embd \(384\)"),
        ({"activation_function": "x"}, r"image\.activation_function is 'x'; it must be one of gelu_new"),
        ({"layer_norm_epsilon": 0.0}, r"image\.layer_norm_epsilon is 0\.0; it must be above 0"),
        ({"shift": 8}, r"image\.shift is 8; it must be from 0 to 7"),
        ({"mean": "a"}, r"image\.mean is 'a'; it must be a number, or 1 with commas"),
        ({"std": "0"}, r"image\.std is '0'; it must be a number, or 1 with commas between them, above 0"),
        ({"features": 4, "prefix_length": 0}, r"image\.prefix_length is 0; it must be 1 or more with image\.features"),
        ({"features": 4, "weights": "a"}, r"image\.weights is 'a'; it must be empty with image\.features"),
        ({"features": 4, "shift": 1}, r"image\.shift is 1; it must be 0 with image\.features"),
    ],
)
def test_options_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(DIGITS, **changes)
