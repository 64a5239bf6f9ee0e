"""Published weights that cannot be had, or not whole: what is told, and what is mended."""

from __future__ import annotations

import errno

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("huggingface_hub")

from hub_checks import ENTRY, named, offline, refused, row, sha256  # noqa: E402
from row_checks import batch, embed  # noqa: E402
from safetensors.torch import save  # noqa: E402

from microtome.plugin.weights.hub import downloading, fetch_hub, fetch_url  # noqa: E402


class TestWithoutNetwork:
    def test_the_cache_is_enough(self, hub, first, monkeypatch):
        hub.commit(ENTRY, model__safetensors=first)
        online, features = row(), embed(row(), batch(96))
        identity = online.weights()
        asked = len(hub.asked)
        offline(monkeypatch)
        again = row()
        assert again.weights() == identity
        assert np.array_equal(embed(again, batch(96)), features)
        assert len(hub.asked) == asked

    def test_a_dead_network_is_as_good_as_offline(self, hub, first, nowhere, never_waits):
        hub.commit(ENTRY, model__safetensors=first)
        identity = row().weights()
        nowhere()
        assert row().weights() == identity

    def test_a_cached_pickle_is_found_too(self, hub, nowhere):
        hub.commit(ENTRY, pytorch_model__bin=b"pickle")
        found = fetch_hub(ENTRY, None)
        nowhere()
        assert fetch_hub(ENTRY, None) == found

    def test_a_cached_commit_is_not_asked_for(self, hub, first):
        commit = hub.commit(ENTRY, model__safetensors=first)
        row(commit).weights()
        asked = len(hub.asked)
        row(commit).load("cpu", "fp32")
        assert len(hub.asked) == asked

    def test_without_a_cache_it_is_told_at_once(self, hub, nowhere, never_waits):
        nowhere()
        text = refused(row().weights, "connect to the network")
        assert ENTRY in text
        assert "weights=PATH" in text

    def test_offline_by_choice_names_the_variable(self, hub, monkeypatch, never_waits):
        offline(monkeypatch)
        assert ENTRY in refused(row().weights, "HF_HUB_OFFLINE")

    def test_a_broken_hub_is_no_network(self, hub, first, never_waits):
        hub.commit(ENTRY, model__safetensors=first)
        hub.status = 503
        assert "try again later" in refused(row().weights, "503")

    def test_a_file_by_url(self, hub, never_waits):
        refused(lambda: fetch_url("http://127.0.0.1:9/a.pth", "timm's a"), "connect to the network")


class TestRefusals:
    def test_gated_without_a_token(self, hub):
        hub.gated.add(ENTRY)
        text = refused(row().weights, "there is no token here")
        assert f"{hub.url}/{ENTRY}" in text
        assert "HF_TOKEN" in text

    def test_a_token_without_access(self, hub, monkeypatch):
        hub.gated.add(ENTRY)
        hub.tokens["mine"] = set()
        monkeypatch.setenv("HF_TOKEN", "mine")
        assert f"{hub.url}/{ENTRY}" in refused(row().weights, "no access")

    def test_a_token_with_access(self, hub, first, monkeypatch):
        hub.commit(ENTRY, model__safetensors=first)
        hub.gated.add(ENTRY)
        hub.tokens["mine"] = {ENTRY}
        monkeypatch.setenv("HF_TOKEN", "mine")
        assert row().weights() == {"weights": f"sha256:{sha256(first)}"}
        assert hub.leaked == []

    def test_a_token_that_is_none(self, hub, monkeypatch):
        hub.gated.add(ENTRY)
        monkeypatch.setenv("HF_TOKEN", "old")
        assert f"{hub.url}/settings/tokens" in refused(row().weights, "does not accept your token")

    def test_unknown_entry(self, hub, monkeypatch):
        assert "set HF_TOKEN if it is private" in refused(row().weights, "check the name")
        hub.tokens["mine"] = set()
        monkeypatch.setenv("HF_TOKEN", "mine")
        assert "that your token may see" in refused(row().weights, "check the name")

    def test_unknown_revision(self, hub, first):
        hub.commit(ENTRY, model__safetensors=first)
        text = refused(row("v9").weights, "encoder.NAME.revision")
        assert ENTRY in text
        assert "'v9'" in text

    def test_entry_without_weights(self, hub):
        hub.commit(ENTRY, README__md=b"soon")
        assert "pytorch_model.bin" in refused(row().weights, "holds no")

    def test_no_name_of_an_entry(self, hub):
        refused(named("hf-hub:a/b/c").weights, "owner/name")

    def test_weights_of_another_model(self, hub):
        hub.commit(ENTRY, model__safetensors=save({"head.weight": torch.zeros(2)}))
        assert ENTRY in refused(lambda: row().load("cpu", "fp32"), "do not fit")

    def test_a_model_without_weights(self, hub):
        refused(named("vit_giant_patch14_224").weights, "random")

    def test_a_file_that_is_not_what_its_name_says(self, hub):
        hub.plain["/model-0123abcd.pth"] = b"changed"
        refused(lambda: fetch_url(f"{hub.url}/model-0123abcd.pth", "timm's model"), "hash")

    def test_a_kept_file_that_is_not_what_its_name_says(self, hub, tmp_path):
        path = tmp_path / "torch-home/hub/checkpoints/model-0123abcd.pth"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half of it")
        text = refused(lambda: fetch_url(f"{hub.url}/{path.name}", "timm's model"), "remove it")
        assert str(path) in text
        assert hub.asked == []


FAULTY = "model.safetensors"


@pytest.fixture
def impatient(monkeypatch):
    """Wait for the hub a fifth of a second, and for another try not at all."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


@pytest.mark.usefixtures("impatient")
class TestDownloadsThatFail:
    @pytest.fixture(autouse=True)
    def entry(self, hub, first):
        hub.commit(ENTRY, model__safetensors=first)

    def test_a_hub_that_says_nothing(self, hub):
        hub.faults[FAULTY] = "silent"
        assert "HF_HUB_ETAG_TIMEOUT" in refused(row().weights, "did not answer within 0.2 s")

    def test_a_hub_that_is_slow(self, hub):
        hub.faults[FAULTY] = "slow"
        text = refused(row().weights, "stood still")
        assert "HF_HUB_DOWNLOAD_TIMEOUT" in text
        assert f"{FAULTY} of {ENTRY}" in text

    def test_a_body_that_is_cut_off(self, hub, tmp_path):
        hub.faults[FAULTY] = "truncated"
        assert f"{FAULTY} of {ENTRY}" in refused(row().weights, "broke off")
        assert not list(tmp_path.glob("hub-cache/models--*/snapshots/*/*"))

    def test_other_bytes_than_the_hub_says(self, hub, first, tmp_path):
        hub.faults[FAULTY] = "corrupt"
        assert sha256(first)[:8] in refused(row().weights, "is not what the hub says it is")
        assert not list(tmp_path.glob("hub-cache/models--*/snapshots/*/*"))
        hub.faults.clear()
        assert row().weights() == {"weights": f"sha256:{sha256(first)}"}

    def test_other_bytes_of_a_small_file(self, hub):
        hub.commit(ENTRY, config__json=b"{}")
        hub.faults["config.json"] = "corrupt"
        refused(lambda: fetch_hub(ENTRY, None, ["config.json"]), "git's SHA-1")

    def test_a_cache_that_takes_nothing(self, tmp_path):
        (tmp_path / "hub-cache").write_bytes(b"no folder")
        assert str(tmp_path / "hub-cache") in refused(row().weights, "broke off")

    def test_a_full_disk(self, monkeypatch):
        def fill(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("huggingface_hub.file_download.http_get", fill)
        assert "HF_HOME" in refused(row().weights, "the disk is full")


class TestHalfDownloaded:
    """What a killed download leaves: online it is mended unseen, offline it is told."""

    @pytest.fixture
    def blob(self, hub, first, tmp_path):
        hub.commit(ENTRY, model__safetensors=first)
        row().weights()
        (blob,) = tmp_path.glob("hub-cache/models--acme--tiny/blobs/*")
        return blob

    @pytest.fixture(params=["no blob", "incomplete"])
    def broken(self, request, blob):
        if request.param == "incomplete":
            (pointer,) = blob.parents[1].glob("snapshots/*/*")
            pointer.unlink()
            blob.with_suffix(".incomplete").write_bytes(b"half")
        blob.unlink()

    def test_without_network_it_is_told(self, broken, nowhere, never_waits):
        nowhere()
        assert "microtome encoders fetch NAME" in refused(row().weights, "broke off")

    def test_offline_it_is_told(self, broken, monkeypatch):
        offline(monkeypatch)
        assert "HF_HUB_OFFLINE" in refused(row().weights, "broke off")

    def test_with_network_it_is_mended(self, broken, first):
        encoder = row()
        assert encoder.weights() == {"weights": f"sha256:{sha256(first)}"}
        encoder.load("cpu", "fp32")


def test_a_damaged_file_is_told_as_that(hub, first, tmp_path):
    hub.commit(ENTRY, model__safetensors=first)
    row().weights()
    (blob,) = tmp_path.glob("hub-cache/models--acme--tiny/blobs/*")
    blob.write_bytes(first[:100])
    assert sha256(first)[:8] in refused(lambda: row().load("cpu", "fp32"), "is damaged")


@pytest.mark.parametrize("place", [-1, 100_000])
def test_one_changed_byte_is_told_before_any_feature(hub, first, tmp_path, place):
    """The network would load it: the file is of the right size and shape."""
    hub.commit(ENTRY, model__safetensors=first)
    row().weights()
    (blob,) = tmp_path.glob("hub-cache/models--acme--tiny/blobs/*")
    content = bytearray(first)
    content[place] ^= 1
    blob.write_bytes(content)
    assert sha256(content)[:8] in refused(lambda: row().load("cpu", "fp32"), "is damaged")


def test_a_small_file_is_checked_when_it_is_found(hub, tmp_path):
    hub.commit(ENTRY, config__json=b"{}")
    found = fetch_hub(ENTRY, None, ["config.json"])
    found.path.resolve().write_bytes(b"[]")
    refused(lambda: fetch_hub(ENTRY, None, ["config.json"]), "is damaged")


class TestFetchingForLater:
    def test_bytes_are_told(self, hub, first):
        hub.commit(ENTRY, model__safetensors=first)
        heard = []
        with downloading(lambda *said: heard.append(said)):
            row().weights()
        assert heard[-1] == (FAULTY, len(first), len(first))
        assert {name for name, _, _ in heard} == {FAULTY}
        assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)

    def test_a_damaged_file_is_fetched_anew(self, hub, first, tmp_path):
        hub.commit(ENTRY, model__safetensors=first)
        row().weights()
        (blob,) = tmp_path.glob("hub-cache/models--acme--tiny/blobs/*")
        blob.write_bytes(first[:100])
        (path,) = row().download(lambda *_: None)
        assert path.read_bytes() == first

    def test_random_weights_need_no_file(self):
        assert row(weights="random").download() == ()

    def test_a_damaged_file_by_url_is_fetched_anew(self, hub, tmp_path):
        content = b"weights"
        name = f"model-{sha256(content)[:8]}.pth"
        hub.plain[f"/{name}"] = content
        path = tmp_path / "torch-home/hub/checkpoints" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        with downloading(lambda *_: None):
            fetch_url(f"{hub.url}/{name}", "timm's model")
        assert path.read_bytes() == content

    def test_a_url_is_left_alone_offline(self, hub, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        refused(lambda: fetch_url(f"{hub.url}/tiny.pth", "timm's tiny"), "TORCH_HOME")
        assert hub.asked == []
