"""Inspectors of a run are held to their specs, by name."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from microtome.errors import ConfigError, InspectorError
from microtome.plugin import InspectorSpec, hookimpl
from microtome.plugin.registry import Registry, get_registry
from microtome.run.planning.quality import Inspection, PlannedInspector, plan_inspectors
from microtome.run.settings import Choice

TILES = np.zeros((2, 8, 8, 3), np.uint8)


def planned(found):
    spec = InspectorSpec(name="acme", target="x:X", summary="x", columns={"a": "A.", "b": "B."})
    return PlannedInspector(
        name="mine",
        spec=spec,
        inspector=SimpleNamespace(inspect=lambda tiles, mpp: found),
        fields={},
        limits={"mine_a_above": 0.5},
    )


def test_columns_have_the_name_of_their_node():
    found = planned({"a": np.ones(2), "b": np.zeros(2)}).inspect(TILES, None)
    assert {name: values.dtype for name, values in found.items()} == {
        "mine_a": np.float32,
        "mine_b": np.float32,
    }


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"a": np.ones(2)}, "gave a; its spec says a, b"),
        ({"a": np.ones(3), "b": np.ones(2)}, r"gave a of shape \(3,\) for 2 tiles"),
        ({"a": np.ones(2), "b": np.array([0, np.nan])}, "not finite"),
        ({"a": np.ones(2), "b": np.array([0, 1e300])}, "not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_its_spec_does_not_say_is_refused(found, told):
    with pytest.raises(InspectorError, match=f"The inspector mine .*{told}"):
        planned(found).inspect(TILES, None)


def test_rows_are_kept_apart_and_dropped_only_if_asked():
    for drop, kept in ((False, [True, True]), (True, [True, False])):
        inspection = Inspection(
            inspectors=[planned({"a": np.array([0.2, 0.9]), "b": np.ones(2)})], drop=drop
        )
        inspection.begin(5)
        assert inspection.look(np.array([3, 1]), TILES).tolist() == kept
        np.testing.assert_allclose(inspection.scores["mine_a"], [0, 0.9, 0, 0.2, 0])


def test_limits_come_from_the_options_by_name():
    config = SimpleNamespace(
        task="process",
        inspectors=(
            Choice(plugin="blur"),
            Choice(plugin="blur", key="again", config=_blur(laplacian_below=3.0)),
        ),
    )
    first, again = plan_inspectors(config, get_registry())
    assert first.limits == {"blur_sharpness_below": 0.14}
    assert again.limits == {"again_sharpness_below": 0.14, "again_laplacian_below": 3.0}
    assert first.fields == again.fields  # limits are in no identity
    assert again.columns == ("again_sharpness", "again_laplacian")


def test_two_of_one_name_are_refused():
    config = SimpleNamespace(task="coords", inspectors=(Choice(plugin="blur"),) * 2)
    with pytest.raises(ConfigError, match="Two inspectors are named 'blur'"):
        plan_inspectors(config, get_registry())


def test_tissue_alone_needs_none():
    config = SimpleNamespace(task="tissue", inspectors=(Choice(plugin="blur"),))
    assert plan_inspectors(config, get_registry()) == ()


def test_weights_are_in_the_identity():
    class Weighty:
        def __init__(self, config):
            pass

        def weights(self):
            return {"weights": "sha256:1"}

    class Package:
        @hookimpl
        def microtome_inspectors(self):
            yield InspectorSpec(
                name="weighty",
                target=f"{__name__}:Weighty",
                summary="x",
                columns={"a": "A."},
            )

    registry = Registry()
    registry.add(Package(), "x", "x")
    registry.load = lambda kind, name: Weighty
    config = SimpleNamespace(task="process", inspectors=(Choice(plugin="weighty"),))
    (one,) = plan_inspectors(config, registry)
    assert one.fields["weights"] == {"weights": "sha256:1"}


def _blur(**options):
    return get_registry().find("inspector", "blur").spec.config(**options)
