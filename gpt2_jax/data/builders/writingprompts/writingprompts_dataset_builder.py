from gpt2_jax.data.builders.base import TokenisedDocuments


class Builder(TokenisedDocuments):
    SOURCE = "writingprompts"
