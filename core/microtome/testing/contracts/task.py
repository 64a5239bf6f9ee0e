"""What a task promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

import pytest

from microtome.config.options import RunOptions, help_of, is_path_key
from microtome.errors import MicrotomeError
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import RUN_KINDS, TaskSpec
from microtome.run.progress import SilentReporter
from microtome.run.settings import Choice, RunConfig
from microtome.run.tasks import do_task
from microtome.testing.contracts.base import PluginContract
from microtome.testing.synthetic import make_slide

THE_RUNS = (
    *("slides", "output", "task", "device", "precision", "threads", "mpp", "force"),
    *("encoder_plugin", *RUN_KINDS),
)
"""Options of every run, which no task may call its own: on a command line the task's would win."""

LONGEST = 400
"""Characters of a refusal that is still read."""


class TaskContract(PluginContract):
    """Subclass it for a task.

    Attributes:
        refuses_nothing: Whether it has nothing to do in an output that holds nothing.
    """

    kind: ClassVar[str] = "task"
    refuses_nothing: ClassVar[bool] = True

    def test_its_spec_is_one_of_a_task(self, entry: Registered) -> None:
        """Its name is the key of its options, so it must be none of a run's."""
        assert isinstance(entry.spec, TaskSpec)
        assert entry.spec.name not in {*RUN_KINDS, *(f.name for f in fields(RunOptions))}

    def test_its_options_are_its_own(self, entry: Registered) -> None:
        """A command line that chooses the task could not say the run's otherwise."""
        own = {field.name for field in fields(entry.spec.config)}
        assert own.isdisjoint(THE_RUNS)

    def test_its_options_are_explained(self, entry: Registered) -> None:
        """The tables of options are made of what they say of themselves."""
        silent = [key for key, schema in _options(entry.spec.config) if not _help(schema, key)]
        assert silent == []

    def test_its_paths_are_taken_for_paths(self, entry: Registered) -> None:
        """By their last word: others would be parsed, and ``a,b.csv`` would be two of them."""
        for key, schema in _options(entry.spec.config):
            types = get_type_hints(schema)[key.rpartition(".")[2]]
            if Path in (types, *get_args(types)):
                assert is_path_key(f"{entry.spec.name}.{key}"), key

    def test_it_can_be_made_with_its_defaults(
        self, registry: Registry, entry: Registered, config: Any
    ) -> None:
        """That computes nothing: a command line is checked by it, before the output is touched."""
        try:
            task = registry.create("task", entry.spec.name, config)
        except MicrotomeError as error:
            _see_sentence(error)
        else:
            assert callable(task.run)

    def test_nothing_to_do_is_a_sentence_and_leaves_nothing(
        self, registry: Registry, entry: Registered, config: Any, tmp_path: Path
    ) -> None:
        """In an output that is not there yet, with a slide if it needs one."""
        if not self.refuses_nothing:
            pytest.skip("it has something to do in an empty output")
        slides = []
        if isinstance(entry.spec, TaskSpec) and entry.spec.needs_slides:
            slides = [str(make_slide(tmp_path / "a.svs", size=(256, 256)).path)]
        output = tmp_path / "out"
        run = RunConfig(
            slides=tuple(slides),
            output=output,
            task=entry.spec.name,
            own_task=Choice(plugin=entry.spec.name, config=config),
        )
        with pytest.raises(MicrotomeError) as caught:
            do_task(run, registry, SilentReporter())
        _see_sentence(caught.value)
        assert not [path for path in output.rglob("*") if path.is_file()]


def _options(schema: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Give the options of a configuration, also nested ones, with what declares each."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        inner = hints[field.name]
        if is_dataclass(inner) and isinstance(inner, type):
            yield from _options(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", schema


def _help(schema: type, key: str) -> str:
    return help_of(schema)[key.rpartition(".")[2]].strip()


def _see_sentence(error: MicrotomeError) -> None:
    text = str(error)
    assert 0 < len(text) <= LONGEST
    assert "\n" not in text
    assert text.endswith((".", "?", ")", "…"))
