"""The notebook of the documentation, executed in a kernel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/notebook.ipynb"

pytestmark = [
    pytest.mark.timeout(600),  # a kernel that imports torch, on a machine that may be busy
    pytest.mark.filterwarnings("default::DeprecationWarning:jupyter_client"),
    pytest.mark.filterwarnings("default::DeprecationWarning:jupyter_core"),
    pytest.mark.filterwarnings("default::ResourceWarning"),
]


class Watched(NotebookClient):
    """Remembers what the kernel sends, as it sends it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sent = []

    def process_message(self, msg, cell, cell_index):
        """Keep it."""
        self.sent.append((cell_index, msg["msg_type"], msg["content"]))
        return super().process_message(msg, cell, cell_index)


@pytest.fixture(scope="module")
def committed():
    """Give the notebook as it is in the documentation."""
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Execute it anew, without its outputs, somewhere else."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
            patch.setenv(name, str(folder / name.lower()))
        client = Watched(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
        client.execute()
    return client


def kinds(notebook):
    """Give what each cell of code gave, by its types."""
    return [
        [(output.output_type, sorted(output.get("data", {}))) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def runs(notebook):
    """Give the cells with a run, whose progress is shown."""
    return [
        number
        for number, cell in enumerate(notebook.cells)
        if "run_slides(" in cell.source or "embed_slide(" in cell.source
    ]


def test_it_gives_what_it_gave(executed, committed):
    nbformat.validate(committed)
    assert [cell.source for cell in executed.nb.cells] == [cell.source for cell in committed.cells]
    assert kinds(executed.nb) == kinds(committed)
    pictures = [
        output for given in kinds(committed) for output in given if "image/png" in output[1]
    ]
    assert len(pictures) == 3


def test_it_warns_of_nothing(executed, committed):
    assert not [sent for sent in executed.sent if sent[2].get("name") == "stderr"]
    for notebook in (executed.nb, committed):
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
        assert "stderr" not in {output.get("name") for output in outputs}


def test_results_are_the_same_anywhere(executed, committed):
    def told(notebook):
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
        texts = [o["data"]["text/plain"] for o in outputs if o.output_type == "execute_result"]
        return texts + [o.text for o in outputs if o.output_type == "stream"][1:]

    assert told(executed.nb) == told(committed)
    assert "{'done': 1}" in told(committed)


def test_progress_is_one_display_that_is_updated(executed):
    assert len(runs(executed.nb)) == 2
    for number in runs(executed.nb):
        sent = [(kind, content) for index, kind, content in executed.sent if index == number]
        shown = [content for kind, content in sent if kind == "display_data"]
        updates = [content for kind, content in sent if kind == "update_display_data"]
        assert len(shown) == 1
        assert len(updates) >= 2
        ids = Counter(content["transient"]["display_id"] for content in [*shown, *updates])
        assert len(ids) == 1
        assert "stream" not in {kind for kind, _ in sent}
        last = executed.nb.cells[number].outputs[0]["data"]["text/plain"]
        assert last == updates[-1]["data"]["text/plain"]
        assert "slide: done" in last
        assert last.splitlines()[-1].endswith("1/1")


def test_it_names_no_place_of_its_author(committed):
    texts = [str(cell.get("outputs", "")) + cell.source for cell in committed.cells]
    assert not [text for text in texts if "/tmp" in text or "/home" in text or "/work" in text]
