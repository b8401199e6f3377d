"""The reference that scripts/reference.sh makes of docstrings: every public name has one, and pages show them whole."""

import ast
import os
import re
import subprocess
import sys

import pytest

DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def undocumented(node, name, told=frozenset()):
    """The public names within a module or class that have no docstring, itself among them.

    A method may leave it to one of the same name in another class of its file, `told`.
    """
    if not ast.get_docstring(node):
        yield name
    classes = [inner for inner in getattr(node, "body", ()) if isinstance(inner, ast.ClassDef)]
    told |= {
        method.name for of in classes for method in of.body if hasattr(method, "name") and ast.get_docstring(method)
    }
    for inner in () if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else node.body:
        implements = isinstance(node, ast.ClassDef) and getattr(inner, "name", "") in told
        if isinstance(inner, DEFINITIONS) and not inner.name.startswith("_") and not implements:
            yield from undocumented(inner, f"{name}.{inner.name}", told)


def test_every_public_name_has_a_docstring(pytestconfig):
    root = pytestconfig.rootpath / "gpt2_jax"
    files = [file for file in root.rglob("*.py") if not re.search(r"data/builders/\w+/", file.as_posix())]
    assert len(files) > 100
    names = ((ast.parse(file.read_text(encoding="utf-8")), str(file.relative_to(root))) for file in files)
    assert [missing for tree, name in names for missing in undocumented(tree, name)] == []


def test_what_has_none_is_found():
    source = '"""Module."""\nclass A:\n    def e(self): ...\n    def _g(self): ...\ndef h():\n    """H."""\n'
    base = 'class B:\n    """B."""\n    def f(self):\n        """F."""\nclass C:\n    """C."""\n    def f(self): ...\n'
    assert [*undocumented(ast.parse(source + base), "m")] == ["m.A", "m.A.e"]


@pytest.fixture(scope="module")
def pages(pytestconfig, tmp_path_factory):
    """{module: HTML} of a few modules, with the options of the script."""
    root, out = pytestconfig.rootpath, tmp_path_factory.mktemp("reference")
    options = re.search(r"--docformat .*?(?= --output)", (root / "scripts/reference.sh").read_text(), re.S)[0]
    command = [sys.executable, "-W", "error", "-m", "pdoc", "gpt2_jax", "gpt2_jax.generation.options"]
    command += [*options.replace("\\\n", " ").split(), "--output-directory", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PDOC_ALLOW_EXEC": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.relative_to(out).as_posix(): path.read_text(encoding="utf-8") for path in out.rglob("*.html")}


def test_the_first_page_has_all_that_is_imported_from_there(pages):
    import gpt2_jax

    page = pages["gpt2_jax.html"]
    assert all(f'<section id="{name}">' in page for name in gpt2_jax.__all__)
    assert re.search("<strong>prompt:</strong> +text or token ids", page) and "Raises:" in page
    assert set(re.findall(r'id="GPT2\.(_\w+)"', page)) == {"__init__", "__call__"}


def test_options_have_their_meanings(pages):
    from gpt2_jax.generation.options import Options

    page = pages["gpt2_jax/generation/options.html"]
    assert all(f"<strong>{field.name}:</strong>" in page for field in Options.fields())
