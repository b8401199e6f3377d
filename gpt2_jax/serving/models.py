"""The models that a server has, by name, each with the batcher that writes its texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2_jax.errors import InputError
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.pretrained import load
from gpt2_jax.serving.batcher import Batcher


class Models(Mapping[str, Batcher]):
    """`models[name].submit(...)`, `models[name].lm`; the first one is `next(iter(models))`. Closes all at its end."""

    def __init__(self, models: Mapping[str, LanguageModel], **options: int):
        """At least one model; the options are those of `Batcher`."""
        if not models:
            raise InputError("there is no model to serve; name one, such as --model=runs/quickstart")
        self._batchers: dict[str, Batcher] = {}
        try:
            for name, lm in models.items():
                self._batchers[name] = Batcher(lm, **options)
        except InputError:
            self.close()
            raise

    @classmethod
    def load(cls, sources: Sequence[str], **options: int) -> "Models":
        """Opens what `gpt2_jax.load` does.

        Args:
          sources: "name=path", or a path or hub id alone, whose last part is then the name.
          **options: those of `Batcher`.

        Raises:
          InputError: nothing to load there, or a name twice.
        """
        return cls({name: load(path) for name, path in named(sources).items()}, **options)

    def __getitem__(self, name: str) -> Batcher:
        return self._batchers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._batchers)

    def __len__(self) -> int:
        return len(self._batchers)

    def warm(self, tell: Callable[[str], None] = lambda name: None) -> None:
        """Compiles what requests will run, one model after the other, whose names it tells; see `Batcher.warm`."""
        for name, batcher in self.items():
            tell(name)
            batcher.warm()

    def close(self) -> None:
        """Ends all texts and threads."""
        for batcher in self._batchers.values():
            batcher.close()

    def __enter__(self) -> "Models":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def named(sources: Sequence[str]) -> dict[str, str]:
    """Paths or hub ids by name, from "name=path" or a path alone.

    Raises:
      InputError: a name twice, or an empty one.
    """
    found: dict[str, str] = {}
    for source in sources:
        name, given, path = source.partition("=")
        if not given:
            path, name = source, Path(source).name
        if not name or not path:
            raise InputError(f"the model {source!r} has no name or no path; give NAME=PATH")
        if name in found:
            raise InputError(f"two models are called {name!r}; give one another name: NAME={path}")
        found[name] = path
    return found
