"""What is said when weights cannot be had, through the command line and the hub's own library.

The table of docs/encoders.md holds them all; a test that fails says which row belongs there.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("huggingface_hub")

from microtome.__main__ import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encoders.md"
ENTRY, FILE = "MahmoodLab/UNI2-h", "pytorch_model.bin"
SITUATIONS = {}


def situation(what, *words):
    def add(function):
        SITUATIONS[what] = (function, words or ("encoder=uni_v2",))
        return function

    return add


class Case:
    """What a situation is made of."""

    def __init__(self, hub, monkeypatch, tmp_path):
        self.hub, self.monkeypatch, self.folder = hub, monkeypatch, tmp_path
        self.cache = tmp_path / "hub-cache"

    def publish(self, entry=ENTRY):
        self.hub.commit(entry, pytorch_model__bin=b"weights of a model")

    def offline(self):
        self.monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def fetch(self):
        """Fetch weights, and give their files in the cache."""
        self.publish()
        assert main(["encoders", "fetch", "uni_v2"]) == 0
        return [path.resolve() for path in self.cache.glob("models--*/snapshots/*/*")]


@situation("gated, and no token")
def _(case):
    case.hub.gated.add(ENTRY)


@situation("gated, and a token without access")
def _(case):
    case.hub.gated.add(ENTRY)
    case.hub.tokens["mine"] = set()
    case.monkeypatch.setenv("HF_TOKEN", "mine")


@situation("a token that is not valid")
def _(case):
    case.hub.gated.add(ENTRY)
    case.monkeypatch.setenv("HF_TOKEN", "old")


@situation("no such entry")
def _(case):
    pass


@situation("no such revision", "encoder=uni_v2", "encoder.uni_v2.revision=v9")
def _(case):
    case.publish()


@situation("an entry without weights")
def _(case):
    case.hub.commit(ENTRY, README__md=b"soon")


@situation("no network")
def _(case):
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    case.monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@situation("a hub that does not answer")
def _(case):
    case.publish()
    case.hub.faults[FILE] = "silent"


@situation("a hub in trouble")
def _(case):
    case.hub.status = 503


@situation("a download that stands still")
def _(case):
    case.publish()
    case.hub.faults[FILE] = "slow"


@situation("a download that is cut off")
def _(case):
    case.publish()
    case.hub.faults[FILE] = "truncated"


@situation("a download of other bytes")
def _(case):
    case.publish()
    case.hub.faults[FILE] = "corrupt"


@situation("offline, and nothing in the cache")
def _(case):
    case.offline()


@situation("offline, and half in the cache: a file that is incomplete")
def _(case):
    for blob in case.fetch():
        blob.rename(blob.with_suffix(".incomplete"))
    for pointer in case.cache.glob("models--*/snapshots/*/*"):
        pointer.unlink()
    case.offline()


@situation("offline, and half in the cache: a snapshot without its file")
def _(case):
    for blob in case.fetch():
        blob.unlink()
    case.offline()


@situation("a damaged file in the hub's cache", "encoder=kaiko_vits16")  # small to build
def _(case):
    case.publish("1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms")
    assert main(["encoders", "fetch", "kaiko_vits16"]) == 0
    for pointer in case.cache.glob("models--*/snapshots/*/*"):
        pointer.resolve().write_bytes(b"wei")


@situation("a damaged file in torch's cache", "encoder=resnet18")
def _(case):
    path = case.folder / "torch-home/hub/checkpoints/resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")


@situation("a missing package")
def _(case):
    from microtome.plugin import registry

    found = registry.installed
    case.monkeypatch.setattr(registry, "installed", lambda name: name != "timm" and found(name))


@situation("weights=PATH without such a file", "encoder=uni_v2", "encoder.uni_v2.weights=uni.bin")
def _(case):
    pass


@situation("weights that no program can download", "encoder=ctranspath")
def _(case):
    pass


@situation("code of a hub entry, without a commit", "encoder=phaet", "encoder.phaet.revision=main")
def _(case):
    pytest.importorskip("transformers")


def told(text, case):
    """Give a message without what differs from machine to machine."""
    text = text.replace(case.hub.url, "HUB").replace(str(case.folder), "DIR")
    text = re.sub("[0-9a-f]{40}", "COMMIT", text)
    return re.sub(r"\(\[Errno.*?\)|\(peer closed.*?\)\)?", "(…)", text.removeprefix("microtime: "))


@pytest.fixture
def case(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.5)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)
    return Case(hub, monkeypatch, tmp_path)


@pytest.mark.parametrize("what", SITUATIONS)
def test_it_is_told_in_one_sentence_before_any_slide(what, case, synthetic, capsys):
    make, words = SITUATIONS[what]
    make(case)
    capsys.readouterr()
    code = main([str(synthetic.path), "output=out", "engine=inline", "device=cpu", *words])
    last = capsys.readouterr().err.splitlines()[-1].removeprefix("microtome: ")
    row = f"| {what} | {told(last, case)} | {code} |"
    assert code == 1
    left = {path.relative_to("out").parts[0] for path in Path("out").rglob("*")}
    assert left <= {"runs"}, "only the record of the run may be there"
    assert row in PAGE.read_text(encoding="utf-8").splitlines()


LOADERS = {
    "medsiglip": ("transformers", "google/medsiglip-448"),
    "omiclip": ("open_clip", "WangGuangyuLab/Loki"),
    "conch_v1": ("timm", "MahmoodLab/conch"),
    "rudolfv2_s": ("transformers", "Aignostics/RudolfV-2-S"),
    "ticon": ("timm", "varunb/TICON"),
}
ALIKE = {
    "gated, and no token": lambda case, entry: case.hub.gated.add(entry),
    "no such entry": lambda case, entry: None,
    "offline, and nothing in the cache": lambda case, entry: case.offline(),
}


@pytest.mark.parametrize("what", ALIKE)
@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_tells_it_alike(name, what, case, synthetic, capsys):
    library, entry = LOADERS[name]
    pytest.importorskip(library)
    ALIKE[what](case, entry)
    words = ["output=out", "engine=inline", "device=cpu", f"encoder={name}"]
    assert main([str(synthetic.path), *words]) == 1
    last = capsys.readouterr().err.splitlines()[-1].removeprefix("microtome: ")
    row = f"| {what} | {told(last, case).replace(entry, ENTRY).replace(name, 'uni_v2')} | 1 |"
    assert row in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_second_entry_of_a_row_is_named_by_itself(case, synthetic, capsys):
    """TICON goes over H-optimus-1, whose weights have an option of their own."""
    case.hub.commit("varunb/TICON", **{"backbone/checkpoint__pth": b"weights of a model"})
    case.hub.gated.add("bioptimus/H-optimus-1")
    words = ["output=out", "engine=inline", "device=cpu", "encoder=ticon"]
    assert main([str(synthetic.path), *words]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "bioptimus/H-optimus-1 is gated and there is no token here" in last
    assert last.endswith("encoder.ticon.tile_weights=PATH.")


def test_the_page_tells_of_no_other():
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| \d \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert rows == list(SITUATIONS)
