"""What `gpt2_jax.save` writes, GPT-2's files as Hugging Face opens them; and the adapters of a run, for PEFT."""

import contextlib
import json
from pathlib import Path
from typing import Any

from gpt2_jax import adapter_files, weights
from gpt2_jax.errors import InputError
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import GPT2
from gpt2_jax.multimodal import ImageGPT2
from gpt2_jax.pretrained import FIELDS, adapters_of, restore_adapted
from gpt2_jax.tensor_files import make_folder, writing
from gpt2_jax.tokenizer import END_OF_TEXT, Tokenizer


def save(lm: LanguageModel, path: str | Path, format: weights.Format = "safetensors") -> Path:
    """Writes a folder that Hugging Face opens as GPT-2: weights, `config.json`, `generation_config.json`, tokenizer.

    Args:
      lm: the model and its tokenizer.
      path: the folder, made if absent; other files in it stay. Where both formats lie, `load` takes safetensors.
      format: "safetensors" (`GPT2LMHeadModel` of transformers) or "flax" (`FlaxGPT2LMHeadModel`, until 4.57).

    Returns:
      The folder.

    Raises:
      InputError: an unknown format, a mix of models, or the folder cannot be written to.
    """
    if not isinstance(lm.model, GPT2):
        raise InputError("a mix of models has no file format; save its models one by one")
    if isinstance(lm.model, ImageGPT2):
        raise InputError(
            "a model that reads images has no file format of GPT-2's; keep its run, which is one, or write its GPT-2 "
            "alone: gpt2_jax.save(lm.text_model(), path)"
        )
    folder = Path(path).expanduser()
    make_folder(folder)
    end = {"bos_token_id": lm.tokenizer.end_of_text, "eos_token_id": lm.tokenizer.end_of_text}
    others = {
        "config.json": _json(_config_json(lm)),
        "generation_config.json": _json({"_from_model_config": True, **end}),
        **_tokenizer_files(lm),
    }
    with contextlib.ExitStack() as files:
        for name, content in others.items():
            files.enter_context(writing(folder / name)).write(content.encode())
        weights.save(lm.model, folder, format)  # and the others, all on disk by now, get their names right after it
    return folder


def save_adapter(run: str | Path, path: str | Path, *, step: int | str | None = None) -> Path:
    """Writes the adapters of a training run (`lora.rank`) as PEFT's files, with the tokenizer.

    `PeftModel.from_pretrained(base, path)` opens it; where the vocabulary has grown, after
    `base.resize_token_embeddings(n)`.

    Args:
      run: its workdir.
      path: the folder, made if absent.
      step: which checkpoint, as in `load`.

    Returns:
      The folder.

    Raises:
      InputError: a run without adapters, or what `load` raises; a layer that is trained whole and has an adapter, for
        which PEFT has no place; or the folder cannot be written to.
    """
    from gpt2_jax.training.checkpoint import Checkpoints  # as in pretrained.py

    with Checkpoints(Path(run).expanduser()) as checkpoints:
        step = checkpoints.find(step)
        groups, tokenizer = checkpoints.read_json(step)
        if (config := adapters_of(groups)) is None:
            raise InputError(f"{run} was trained without adapters (lora.rank is 0); write it as safetensors or flax")
        model = restore_adapted(checkpoints, step, config, config.model)
    folder = Path(path).expanduser()
    adapter_files.save(model, config.lora, folder, base=config.finetune.start)
    for name, content in _tokenizer_files(LanguageModel(model, Tokenizer.from_json(tokenizer))).items():
        with writing(folder / name) as stream:
            stream.write(content.encode())
    return folder


def _config_json(lm: LanguageModel) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{name: getattr(lm.config, name) for name in FIELDS},
        "n_ctx": lm.config.n_positions,
        "bos_token_id": lm.tokenizer.end_of_text,
        "eos_token_id": lm.tokenizer.end_of_text,
        "dtype": "float32",
        "use_cache": True,
    }


def _tokenizer_files(lm: LanguageModel) -> dict[str, str]:
    """{name: text}: `tokenizer.json` and what tells transformers how to open it; GPT-2's two files for a BPE."""
    text = lm.tokenizer.to_json()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    bpe = lm.tokenizer.kind == "bpe"
    settings = {
        "tokenizer_class": "GPT2Tokenizer" if bpe else "PreTrainedTokenizerFast",
        "model_max_length": lm.config.n_positions,
        **({"add_prefix_space": False} if bpe else {}),
        **special,
    }
    files = {
        "tokenizer.json": text,
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
    }
    if bpe:
        content = json.loads(text)
        vocab = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
        files["vocab.json"] = json.dumps(vocab, ensure_ascii=False)
        files["merges.txt"] = "\n".join(["#version: 0.2", *merges]) + "\n"
    return files


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
