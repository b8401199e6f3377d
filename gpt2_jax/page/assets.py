"""The page's own scripts and styles, which come with the package: nothing is loaded from elsewhere."""

from importlib import resources


def asset(name: str) -> str:
    """The text of a file in this folder."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
