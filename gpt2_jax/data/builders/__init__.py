"""Tokenised corpora as TFDS datasets; importing this registers their names.

    import gpt2_jax.data.builders
    import tensorflow_datasets as tfds

    tfds.builder("stories").download_and_prepare()  # in ~/tensorflow_datasets/stories/gpt2/1.0.0
    source = tfds.data_source("stories", split="train[:95%]")  # random access
    source[7]["tokens"]

A tokenizer of one's own and options of `DataConfig` are a config with a name of its own:

    mine = TokensConfig(name="mine", tokenizer="tokenizer.json", options={"paths": "poems", "min_characters": 100})
    tfds.builder("text_files", config=mine).download_and_prepare()

What was built is read without this package, too: `tfds.builder_from_directory(folder).as_data_source("train")`.
"""

from gpt2_jax.data.builders.base import TokensConfig
from gpt2_jax.data.builders.code.code_dataset_builder import Builder as Code
from gpt2_jax.data.builders.gutenberg_poetry.gutenberg_poetry_dataset_builder import Builder as GutenbergPoetry
from gpt2_jax.data.builders.openwebtext.openwebtext_dataset_builder import Builder as OpenWebText
from gpt2_jax.data.builders.poetry.poetry_dataset_builder import Builder as Poetry
from gpt2_jax.data.builders.stories.stories_dataset_builder import Builder as Stories
from gpt2_jax.data.builders.text_files.text_files_dataset_builder import Builder as TextFiles
from gpt2_jax.data.builders.wikitext.wikitext_dataset_builder import Builder as WikiText
from gpt2_jax.data.builders.writingprompts.writingprompts_dataset_builder import Builder as WritingPrompts

__all__ = [
    "Code",
    "GutenbergPoetry",
    "OpenWebText",
    "Poetry",
    "Stories",
    "TextFiles",
    "TokensConfig",
    "WikiText",
    "WritingPrompts",
]
