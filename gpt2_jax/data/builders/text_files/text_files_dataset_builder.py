from typing import Any

import tensorflow_datasets as tfds

from gpt2_jax.data.builders.base import TokenisedDocuments


class Builder(TokenisedDocuments):
    """People's own files, those of `manual_dir` or of the option "paths"."""

    SOURCE = "files"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Text, Markdown, Python, .jsonl, .csv, .tsv or .parquet files, in folders or not."

    def _own_options(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {} if "paths" in self.builder_config.options else {"paths": str(dl_manager.manual_dir)}
