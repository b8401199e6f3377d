"""The tutorial as a notebook, from its source to its pictures, with a model that learns for seconds."""

import os
import re

import jupytext
import nbclient
import nbformat
import pytest

# Of sockets and event loops that Jupyter's own code leaves behind.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
SHORT = 'FOLDER, MODULES = Path("tutorial"), "co*.py"\nLAYERS, VOCABULARY, STEPS, VERSE_STEPS = 1, 400, 20, 20'


@pytest.fixture(scope="module")
def notebook(pytestconfig, tmp_path_factory):
    """Executed; a cell that fails is an error."""
    root = pytestconfig.rootpath
    notebook = jupytext.read(root / "scripts" / "tutorial.py")
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SHORT))
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
        client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
        client.execute()
    return notebook


def outputs(notebook, kind):
    return [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == kind]


def test_it_says_nothing_that_sounds_like_a_warning(notebook):
    said = "".join(output.text for output in outputs(notebook, "stream"))
    assert "step     20  val loss" in said and "(from the persistent cache)" not in said
    assert not re.search(r"warning|INFO:|Traceback", said, re.I)


def test_it_shows_pictures_and_texts_to_point_at(notebook):
    shown = [set(output.data) for output in outputs(notebook, "execute_result")]
    assert sum("image/png" in data for data in shown) >= 6 and sum("text/html" in data for data in shown) >= 2


def test_fine_tuning_helps_verse(notebook):
    (cell,) = (cell for cell in notebook.cells if cell.source.startswith('print("before")'))
    said = "".join(output.text for output in cell.outputs)
    before, after = (
        float(perplexity.replace(",", "")) for perplexity in re.findall(r"verse +perplexity +([\d,.]+)", said)
    )
    assert after < 0.9 * before
