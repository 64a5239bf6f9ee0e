"""Actors of a Ray cluster, which may lose nodes."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from gates import Listener, assert_same, content, meanwhile, shut_gate, until, waiting

from microtome.errors import EngineError
from microtome.store.claims import find_holders
from microtome.store.layout import OutputLayout

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no ray installed"),
    # Ray leaves sockets and logs open.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def cluster(monkeypatch):
    """Start a cluster on this machine: a head that does not work, and two nodes that do."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster()
    patiently(lambda: made.add_node(num_cpus=0, include_dashboard=False))
    made.two = [patiently(lambda: made.add_node(num_cpus=1)) for _ in range(2)]
    yield made
    made.shutdown()


def patiently(start, tries=3):
    """Start a node, for which Ray gives it 30 seconds: too few where tests share a machine."""
    for left in reversed(range(tries)):
        try:
            return start()
        except Exception:
            if not left:
                raise


def told_of(result):
    return sorted((status.slide_id, status.state) for status in result.statuses)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_of_its_own_gives_what_one_process_gives(go, slides, tmp_path, capfd):
    folder = slides(*"abcdef")
    go(folder, engine="inline", output="alone")
    capfd.readouterr()
    result = go(folder, engine="ray", workers={"workers": 2})
    assert told_of(result) == [(name, "done") for name in "abcdef"]
    assert_same(content(tmp_path / "alone"), content(tmp_path / "out"))
    assert not find_holders(OutputLayout(tmp_path / "out"))
    assert capfd.readouterr().err == ""
    assert not sys.modules["ray"].is_initialized()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_is_lost_half_way(go, slides, cluster, tmp_path, monkeypatch):
    output, told = tmp_path / "out", Listener()

    with shut_gate(tmp_path, monkeypatch) as gate:
        folder = slides("a", "b", "c", "d")
        go(folder, engine="inline", encoder="handcrafted", output="alone")
        # Workers inherit the environment of their node, which was started before.
        for node in cluster.two:
            cluster.remove_node(node)
        cluster.two = [patiently(lambda: cluster.add_node(num_cpus=1)) for _ in range(2)]
        cluster.wait_for_nodes()

        def lose():
            until(lambda: len(waiting(gate)) == 2)
            cluster.remove_node(cluster.two[0], allow_graceful=False)
            until(lambda: any("was lost" in text for text in told.texts))
            gate.unlink()

        with meanwhile(lose):
            result = go(
                folder,
                engine="ray",
                encoder=["handcrafted", "gated"],
                reporter=told,
                claims={"seconds": 5.0},
                workers={"workers": 2, "address": cluster.address},
            )
        assert told_of(result) == [(name, "done") for name in "abcd"]
        alone, here = content(tmp_path / "alone"), content(output)
        for _, features, _ in here.values():
            del features["gated"]
        assert_same(alone, here)
        assert not find_holders(OutputLayout(output))


def test_a_cluster_that_is_not_there_is_told(go, slides):
    with pytest.raises(EngineError, match=r"answers at engine\.address=auto"):
        go(slides("a"), engine="ray", workers={"address": "auto"})
