"""Whoever wants to hear of runs from Python, and what a notebook shows."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import microtome
from microtome import ExecutionOptions, Model, Pipeline, PreprocessingConfig, SilentReporter
from microtome.run import notebook
from microtome.run.notebook import NotebookReporter
from microtome.run.progress import LineReporter, make_reporter
from microtome.store.status import SlideStatus


class Listener(SilentReporter):
    """Writes down what it hears."""

    def __init__(self):
        self.heard = []

    def start(self, slides):
        self.heard.append(("start", slides))

    def note(self, text):
        self.heard.append(("note", text))

    def finished(self, status):
        self.heard.append(("finished", status.slide_id))

    def __enter__(self):
        self.heard.append(("enter",))
        return self

    def __exit__(self, *exc):
        self.heard.append(("exit",))


@pytest.fixture
def unheard(monkeypatch):
    """Take away the reporter that is active in these tests."""
    with microtome.activate_progress_reporter(None):
        yield


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("how", ["slides", "patients", "pipeline", "run"])
def test_the_active_reporter_hears_of_everything(cohort, tmp_path, how):
    settings = PreprocessingConfig(segmentation={"method": "otsu"}, use_supertiles=False)
    slide = cohort / "a.svs"
    with microtome.activate_progress_reporter(Listener()) as listener:
        if how == "slides":
            Model.from_preset("mean", level="tile").embed_slide(slide, preprocessing=settings)
        elif how == "patients":
            Model.from_preset("of_nominal").embed_patient([slide], preprocessing=settings)
        elif how == "pipeline":
            execution = ExecutionOptions(output_dir=tmp_path)
            model = Model.from_preset("mean", level="tile")
            Pipeline(model, settings, execution=execution).run([slide])
        else:
            microtome.run_slides(slide, tmp_path, encoder="mean", segmenter="otsu")
    kinds = [heard[0] for heard in listener.heard]
    assert kinds[0] == "enter"
    assert kinds[-1] == "exit"
    assert ("start", 1) in listener.heard
    assert ("finished", "a") in listener.heard
    if how != "run":
        assert any("use_supertiles=False changes nothing" in h[-1] for h in listener.heard if h[1:])


def test_a_reporter_is_active_within_its_block(unheard):
    with microtome.activate_progress_reporter(Listener()) as outer:
        with microtome.activate_progress_reporter(Listener()) as inner:
            make_reporter().note("inner")
        make_reporter().note("outer")
    assert inner.heard == [("note", "inner")]
    assert outer.heard == [("note", "outer")]
    assert isinstance(make_reporter(), LineReporter)


class Page:
    """Shows what a display is told, as a notebook does."""

    def __init__(self):
        self.displays = 0
        self.shown = []

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id
        self.displays += 1
        self.shown.append(data["text/plain"])
        return self

    def update(self, data, *, raw):
        assert raw
        self.shown.append(data["text/plain"])


@pytest.fixture
def page(monkeypatch, unheard):
    """Pretend that this is a kernel."""
    page = Page()
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", page)
    return page


def test_a_notebook_has_one_display(page, cohort, plugins):
    model = Model.from_preset("mean", level="tile")
    settings = PreprocessingConfig(segmentation={"method": "otsu"})
    slides = [cohort / "a.svs", cohort / "e.svs", cohort / "b.svs"]
    with pytest.warns(RuntimeWarning):
        model.embed_slides(slides, preprocessing=settings, on_error="skip")
    assert page.displays == 1
    assert len(page.shown) > 3
    last = page.shown[-1].splitlines()
    assert any("slides ██████████" in line and "3/3" in line for line in last)
    assert any(line.startswith("a: done") for line in last)
    assert any(line.startswith("e: failed at open") for line in last)


def test_a_script_under_ipython_is_no_notebook(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace())
    )
    assert not notebook.in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not notebook.in_notebook()


def test_a_display_is_not_flooded(page, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now[0])
    with NotebookReporter() as reporter:
        reporter.start(2)
        before = len(page.shown)
        for _ in range(100):
            reporter.advance("a", 1)
        assert len(page.shown) == before
        now[0] += 1
        reporter.stage("a", "encode", 512)
        reporter.advance("a", 64)
        assert len(page.shown) == before + 1
    assert page.shown[-1].endswith("a: encode 64/512")


def test_what_failed_stays_on_the_page(page):
    with NotebookReporter() as reporter:
        reporter.start(50)
        for index in range(50):
            state = "failed" if index < 2 else "done"
            error = {"type": "E", "message": "gone"} if index < 2 else None
            reporter.finished(
                SlideStatus(slide_id=f"s{index}", path="s", state=state, stage="open", error=error)
            )
        lines = reporter.text.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        *("s0", "s1"),
        *(f"s{index}" for index in range(45, 50)),
    ]
