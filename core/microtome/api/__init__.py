"""The Python face: the same run, plugins and files as the command line, without Hydra."""

from microtome.api.results import open_result
from microtome.api.runs import run_slides
from microtome.api.slide import Slide, open_slide

__all__ = ["Slide", "open_result", "open_slide", "run_slides"]
