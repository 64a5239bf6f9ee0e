"""Tiles of one slide over several devices: the same features, in the same place."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from types import SimpleNamespace
from typing import ClassVar

import h5py
import numpy as np
import pytest
from numbered import TILE, Numbered, grid_of

from microtome.__main__ import main
from microtome.api.runs import compose
from microtome.errors import ConfigError, EncoderError
from microtome.plugin import EncoderCard, EncoderSpec
from microtome.plugin.options import configure
from microtome.plugin.protocols import EncoderOutput
from microtome.plugin.registry import get_registry
from microtome.run.planning.budget import Threads, share_threads
from microtome.run.planning.devices import resolve_devices
from microtome.run.planning.encoders import PlannedEncoder, make_encoder
from microtome.run.settings import EncoderChoice, RunConfig
from microtome.run.slides.pixels import PixelPass
from microtome.run.slides.replicas import Lanes, Replica
from microtome.store.publish import FeatureScratch
from microtome.testing import make_slide

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

RANDOM = {"weights": "random"}
TORCH = EncoderSpec(name="net", target="x:Y", summary="torch", requires=("torch",))


class Corner:
    """Gives the first two channels of the first pixel: the tile's column and row."""

    card = EncoderCard(dim=2)

    def __init__(self, *, fails_at=None, interrupts=False):
        self.fails_at, self.interrupts = fails_at, interrupts
        self.threads, self.batches = set(), []

    def encode(self, batch):
        self.threads.add(threading.current_thread().name)
        self.batches.append(batch)
        if len(self.batches) == self.fails_at:
            if self.interrupts:
                signal.raise_signal(signal.SIGINT)
            raise EncoderError("no memory")
        return EncoderOutput(batch.pixels[:, 0, 0, :2].astype(np.float32))


class Patient(Corner):
    """Begins at once, and waits for its output when asked for it, as a GPU does."""

    flying: ClassVar = []
    most = 0

    def begin(self, batch):
        Patient.flying.append(batch)
        Patient.most = max(Patient.most, len(Patient.flying))
        output = self.encode(batch)

        def finish():
            Patient.flying.remove(batch)
            return output

        return finish


def planned(*encoders, name="corner", batch_size=32):
    first, *others = encoders
    return PlannedEncoder(
        name=name,
        spec=TORCH,
        encoder=first,
        device="cpu",
        precision="fp32",
        asked_batch_size=batch_size,
        fields={},
        registry=get_registry(),
        replicas=tuple(Replica(other, "cpu") for other in others),
    )


def ours():
    return [t.name for t in threading.enumerate() if t.name.startswith("microtome-")]


@pytest.fixture
def feed(tmp_path):
    """Do a pass over a slide of 140 × 5 tiles and give what came out of it."""

    def run(*encoders, batch_size=32):
        reader = Numbered(140, 5)
        grid = grid_of(reader)
        scratches = [
            stack.enter_context(FeatureScratch(tmp_path, len(grid), "float32")) for _ in encoders
        ]
        done = PixelPass(
            filter=RunConfig(slides=("x",), output=tmp_path).filter,
            encoders=[(e, {"embedding": s}) for e, s in zip(encoders, scratches, strict=True)],
            batch_size=batch_size,
            threads=Threads(2, 1),
        )
        done.run(reader, grid)
        features = [np.concatenate(list(s.source(None).chunks(100))) for s in scratches]
        return SimpleNamespace(expected=grid.coords[:, :2] // TILE, features=features)

    with ExitStack() as stack:
        yield run


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", [Corner, Patient])
def test_batches_go_to_the_devices_in_turn_and_rows_where_they_belong(feed, kind, count):
    encoders = [kind() for _ in range(count)]
    result = feed(planned(*encoders))
    np.testing.assert_array_equal(result.features[0], result.expected)
    batches = -(-len(result.expected) // 32)
    assert [len(e.batches) for e in encoders] == [
        len(range(i, batches, count)) for i in range(count)
    ]
    # In the order of a single device, batch by batch.
    alone = Corner()
    feed(planned(alone))
    for number, batch in enumerate(alone.batches):
        mine = encoders[number % count].batches[number // count]
        np.testing.assert_array_equal(mine.coords, batch.coords)


def test_each_device_has_one_thread_of_its_own_which_ends_with_the_pass(feed):
    encoders = [Corner(), Corner()]
    feed(planned(*encoders))
    assert [e.threads for e in encoders] == [{"microtome-device-0_0"}, {"microtome-device-1_0"}]
    assert not ours()


def test_a_device_has_one_batch_more_than_it_computes(feed):
    Patient.flying, Patient.most = [], 0
    feed(planned(*(Patient() for _ in range(3))), batch_size=8)
    assert not Patient.flying
    assert 1 < Patient.most <= 6


def test_encoders_on_one_device_share_what_is_made_of_a_batch(feed):
    one, other = [Corner(), Corner()], [Corner(), Corner()]
    alone = Corner()
    result = feed(planned(*one), planned(*other, name="other"), planned(alone, name="alone"))
    for features in result.features:
        np.testing.assert_array_equal(features, result.expected)
    for here, there in zip(one, other, strict=True):
        assert all(a is b for a, b in zip(here.batches, there.batches, strict=True))
    # The one that has no other device stays in the calling thread, and shares with nobody.
    assert alone.threads == {threading.current_thread().name}
    shared = {id(batch) for encoder in one for batch in encoder.batches}
    assert not shared & {id(batch) for batch in alone.batches}


def test_encoders_of_several_batch_sizes(feed):
    small, large = [Corner(), Corner()], [Corner(), Corner()]
    result = feed(planned(*small, batch_size=5), planned(*large, name="large", batch_size=50))
    for features in result.features:
        np.testing.assert_array_equal(features, result.expected)
    assert {len(b) for e in small for b in e.batches} == {5}
    assert max(len(b) for e in large for b in e.batches) == 50


def test_an_error_on_any_device_ends_the_pass_and_its_threads(feed):
    with pytest.raises(EncoderError, match="no memory"):
        feed(planned(Corner(), Corner(fails_at=3)), batch_size=8)
    assert not ours()


def test_ctrl_c_ends_the_pass_and_its_threads(feed):
    with pytest.raises(KeyboardInterrupt):
        feed(planned(Corner(), Corner(fails_at=3, interrupts=True)), batch_size=8)
    assert not ours()


class Roomy(Corner):
    """Says how much memory its device has, and what became of it."""

    def __init__(self, largest, note):
        super().__init__()
        self.largest, self.notes = largest, [note]
        self.loaded = []

    def load(self, device, precision):
        self.loaded.append((device, precision))

    def largest_batch(self):
        return self.largest


def test_an_open_batch_size_is_the_smallest_of_all_devices():
    assert planned(Roomy(64, ""), Roomy(16, ""), Roomy(32, ""), batch_size=None).batch_size == 16


def test_notes_are_those_of_all_devices_each_once():
    assert planned(Roomy(1, "a"), Roomy(1, "b"), Roomy(1, "a")).notes == ("a", "b")


def test_weights_are_loaded_once_on_each_device():
    first, second = Roomy(1, ""), Roomy(1, "")
    one = planned(first, second)
    one.replicas = (Replica(second, "cuda:1"),)
    one.ensure_loaded()
    one.ensure_loaded()
    assert (first.loaded, second.loaded) == ([("cpu", "fp32")], [("cuda:1", "fp32")])
    assert one.devices == ("cpu", "cuda:1")
    assert "cpu and cuda:1" in str(one)


def test_weights_that_change_between_two_devices_are_refused():
    first, second = Roomy(1, ""), Roomy(1, "")
    first.loaded_weights, second.loaded_weights = {"commit": "a"}, {"commit": "b"}
    one = planned(first, second)
    with pytest.raises(EncoderError, match="changed while they were loaded onto cpu, cpu"):
        one.ensure_loaded()
    assert not one.loaded


def test_a_lane_has_torchs_threads_and_leaves_those_of_others():
    before = torch.get_num_threads()
    with Lanes(["cpu", "cpu"], 3) as lanes:
        found = [lanes.submit(lambda lane: (lane, torch.get_num_threads())) for _ in range(3)]
        assert [each.result() for each in found] == [(0, 3), (1, 3), (0, 3)]
        assert torch.get_num_threads() == before
    torch.set_num_threads(before)  # also of threads that are new


def test_a_lane_is_on_its_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with Lanes(["cuda:0", "cuda:1"], torch.get_num_threads()) as lanes:
        for _ in range(2):
            lanes.submit(lambda lane: None).result()
    assert chosen == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_one_device_needs_no_lane():
    with Lanes(["cpu"], 1) as lanes:
        assert not ours()
        assert lanes.in_flight == 1


def test_replicas_on_the_cpu_share_it():
    heavy = SimpleNamespace(spec=TORCH, card=EncoderCard(dim=4, params=None), device="cpu")
    assert share_threads(8, [heavy], replicas=2) == Threads(2, 4)
    assert share_threads(8, [heavy], replicas=3, torch=2) == Threads(2, 2)
    assert share_threads(2, [heavy], replicas=4) == Threads(1, 1)


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that torch sees two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("spec", "device", "expected"),
    [
        (TORCH, "auto", ("cuda:0", "cuda:1")),
        (TORCH, "cuda", ("cuda:0", "cuda:1")),
        (EncoderSpec(name="net", target="x:Y", summary="numpy"), "auto", ("cpu",)),
        (
            EncoderSpec(
                name="net", target="x:Y", summary="threads", requires=("torch",), concurrent=True
            ),
            "cpu",
            ("cpu",),
        ),
    ],
)
def test_who_is_on_several_devices(gpus, spec, device, expected):
    choice = EncoderChoice(plugin="net", device=device)
    assert resolve_devices(spec, choice, ("cuda:0", "cuda:1")) == expected


def test_the_python_apis_list_with_a_device_of_its_kind(gpus, tmp_path):
    devices = ["cuda:0", "cuda:1"]
    options = {"tile_devices": devices, "encoder": {"resnet18": {**RANDOM, "device": "cuda"}}}
    config, registry = compose("x.svs", tmp_path, options)
    (choice,) = config.encoders
    made = make_encoder(choice, registry, tile_devices=config.tile_devices)
    assert made.devices == ("cuda:0", "cuda:1")
    assert made.precision == made.card.precision


@pytest.mark.parametrize(
    ("device", "devices", "told"),
    [
        ("cpu", ("cuda:0", "cuda:1"), "device=cpu and tile_devices=.cuda:0,cuda:1. contradict"),
        ("cuda:1", ("cuda:0", "cuda:1"), "contradict each other"),
        ("auto", ("cuda:0", "cuda:2"), "tile_devices=.cuda:0,cuda:2. was asked .* sees 2 cuda dev"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(gpus, device, devices, told):
    with pytest.raises(ConfigError, match=told):
        resolve_devices(TORCH, EncoderChoice(plugin="net", device=device), devices)


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        (("auto", "cpu"), "'auto' is no device such as"),
        (("gpu0",), "'gpu0' is no device"),
        (("cpu", "cuda:0"), "all tiles of a slide go to one kind"),
    ],
)
def test_lists_that_make_no_sense_are_refused(tmp_path, devices, told):
    with pytest.raises(ConfigError, match=told):
        RunConfig(slides=("x",), output=tmp_path, tile_devices=devices)


def arrays(output, slide="one"):
    with h5py.File(output / f"patches/{slide}.h5") as file:
        found = {}
        file.visititems(lambda name, item: found.update({name: item}))
        held = {name: item[:] for name, item in found.items() if isinstance(item, h5py.Dataset)}
        return held, {name: dict(item.attrs) for name, item in found.items()}


PAIRS = {"batch_size": 2, "torch_threads": 1}


@pytest.mark.parametrize("threads", [1, 2])
def test_features_are_those_of_one_device_to_the_bit(go, slide, tmp_path, threads):
    resnet18 = {**RANDOM, "batch_size": 2, "tokens": True}
    options = PAIRS | {"encoder": {"resnet18": resnet18, "mean": {}}, "torch_threads": threads}
    result = go(slide, output=tmp_path / "several", tile_devices=["cpu", "cpu"], **options)
    assert [s.state for s in result.statuses] == ["done"]
    assert result.statuses[0].tiles > 4  # more than one batch for each
    assert any("cpu and cpu" in note for note in result.notes)
    go(slide, output=tmp_path / "one", **options)
    (mine, told), (theirs, alone) = (arrays(tmp_path / n) for n in ("several", "one"))
    assert mine.keys() == theirs.keys() >= {"features/resnet18", "tokens/resnet18"}
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    both = told["features/resnet18"], alone["features/resnet18"]
    assert [a["device"] for a in both] == ["cpu,cpu", "cpu"]
    assert [a["torch_threads"] for a in both] == [threads, threads]
    assert both[0]["identity"] == both[1]["identity"]
    assert both[0]["weights"] == both[1]["weights"]
    assert told["features/mean"]["device"] == "cpu"


def test_one_replica_that_is_short_of_memory_halves_its_batches(go, slide, tmp_path, monkeypatch):
    from microtome_encoders.patch.torchvision import TorchvisionEncoder

    made = []
    init, forward = TorchvisionEncoder.__init__, TorchvisionEncoder.forward

    def remember(self, *args, **options):
        made.append(self)
        init(self, *args, **options)

    def tight(self, model, images):
        if self is made[-1] and len(images) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(self, model, images)

    options = PAIRS | {"encoder": {"resnet18": {**RANDOM, "batch_size": 2}}}
    go(slide, output=tmp_path / "one", **options)
    monkeypatch.setattr(TorchvisionEncoder, "__init__", remember)
    monkeypatch.setattr(TorchvisionEncoder, "forward", tight)
    result = go(slide, output=tmp_path / "several", tile_devices=["cpu", "cpu"], **options)
    assert len(made) == 2
    (status,) = result.statuses
    assert status.state == "done"
    assert [w for w in status.warnings if "has no memory for" in w]
    mine, theirs = (arrays(tmp_path / n)[0]["features/resnet18"] for n in ("several", "one"))
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_from_the_command_line_with_an_open_batch_size(slide, tmp_path, capsys):
    words = [
        f"output={tmp_path / 'out'}",
        "engine=inline",
        "encoder=resnet18",
        "encoder.resnet18.weights=random",
        "encoder.resnet18.batch_size=null",
        "tiler.magnification=20",
        "tile_devices=[cpu,cpu]",
    ]
    assert main([str(slide), *words]) == 0
    assert "cpu and cpu" in capsys.readouterr().out
    _, told = arrays(tmp_path / "out")
    assert told["features/resnet18"]["device"] == "cpu,cpu"
    assert told["features/resnet18"]["batch_size"] == 32


def test_a_replica_is_asked_for_what_the_first_is():
    spec = get_registry().find("encoder", "resnet18").spec
    choice = EncoderChoice(plugin="resnet18", config=configure(spec, **RANDOM), tokens=True)
    made = make_encoder(choice, get_registry(), tile_devices=("cpu", "cpu"))
    assert [each._asked for each in (made.encoder, made.replicas[0].encoder)] == [("tokens",)] * 2
    assert made.encoder is not made.replicas[0].encoder


@pytest.fixture
def uneven(tmp_path):
    """Make slides of which the first are the smallest: several workers begin with the last."""
    folder = tmp_path / "uneven"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        make_slide(folder / f"{name}.svs", size=(1024 + 512 * seed, 1024), seed=seed)
    return folder


@pytest.fixture
def named(uneven):
    """Name them in another order, with one that is not there."""
    manifest = uneven / "slides.csv"
    manifest.write_text("slide\nb.svs\nmissing.svs\na.svs\nc.svs\n")
    return manifest


ENDED = [("b", "done"), ("missing", "failed"), ("a", "done"), ("c", "done")]
TWO = {"local": {"workers": 2}}


def test_statuses_come_as_slides_were_named_whichever_worker_is_first(go, named):
    result = go(named, engine=TWO, encoder="handcrafted")
    assert [(s.slide_id, s.state) for s in result.statuses] == ENDED


@pytest.mark.slow
def test_workers_with_several_devices_each_give_what_one_gives(go, named, tmp_path):
    options = PAIRS | {"encoder": {"resnet18": {**RANDOM, "batch_size": 2}}}
    spread = {"engine": TWO, "tile_devices": ["cpu", "cpu"]}
    go(named, output=tmp_path / "alone", **options)
    result = go(named, output=tmp_path / "spread", **options, **spread)
    assert [(s.slide_id, s.state) for s in result.statuses] == ENDED
    for name in "abc":
        mine, theirs = (arrays(tmp_path / n, name)[0] for n in ("spread", "alone"))
        for key in theirs:
            np.testing.assert_array_equal(mine[key], theirs[key], err_msg=key)


def test_a_gpu_a_worker_and_all_gpus_in_one_contradict_each_other(go, slide, gpus):
    with pytest.raises(ConfigError, match="leave one of the two out"):
        go(
            slide,
            engine={"local": {"devices": [0, 1]}},
            encoder={"resnet18": dict(RANDOM)},
            tile_devices=["cuda:0", "cuda:1"],
        )
