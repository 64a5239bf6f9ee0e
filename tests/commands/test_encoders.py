"""``microtome encoders``: the list, the cards, and weights for later."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from config_standins import encoder, fill, module

from microtome.__main__ import main
from microtome.commands import _fetching, encoders
from microtome.plugin import EncoderCard
from microtome.plugin.registry import Registry, get_registry

UNI = EncoderCard(
    dim=1536,
    input_size=224,
    precision="bf16",
    patch_size=256,
    mpp=0.5,
    magnification=20.0,
    hub_id="acme/uni",
    licence="CC-BY-NC-ND-4.0",
    commercial=False,
    gated=True,
    params=681_394_176,
)
OPEN = EncoderCard(dim=768, hub_id="acme/open", licence="MIT", commercial=True, gated=False)
UNSAID = EncoderCard(dim=384, hub_id="acme/unsaid", licence="MIT")


@pytest.fixture
def listed(monkeypatch):
    registry = fill(Registry())
    rows = [
        encoder("uni", card=UNI, domain="pathology", names={"peer": "uni2", "other": "U-NI 2"}),
        encoder("free", card=OPEN, domain="natural", names={"peer": "base", "other": "uni"}),
        encoder("small", card=OPEN, domain="natural", names={"peer": "base-s", "other": "base"}),
        encoder("unsaid", card=UNSAID, domain="natural"),
        encoder("far", card=OPEN, requires=("no_such_module",), install="pip install far-away"),
    ]
    registry.add(module("cards", encoders=rows), "cards", "cards-dist")
    monkeypatch.setattr(encoders, "get_registry", lambda: registry)
    return registry


def names(capsys, *words):
    """Give the names in a list, in order."""
    assert main(["encoders", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.split()[0] for line in lines[2:] if line.startswith("  ")]


def own(capsys, *words):
    """Give the names in a list without those that tests of the bench leave in this process."""
    return [name for name in names(capsys, *words) if not name.startswith("bench_")]


class TestList:
    def test_a_row_says_what_decides(self, listed, capsys):
        assert main(["encoders"]) == 0
        out = capsys.readouterr().out.splitlines()
        (row,) = [line for line in out if line.startswith("  uni ")]
        for cell in ("1536", "224", "256 @ 0.5", "681 M", "CC-BY-NC-ND-4.0", "no", "gated", "here"):
            assert cell in row
        (row,) = [line for line in out if line.startswith("  far ")]
        assert "missing" in row

    @pytest.mark.parametrize(
        ("name", "told", "said"),
        [("free", "open", "open"), ("unsaid", "?", "whether it is gated is not known")],
    )
    def test_a_gate_that_is_not_known_is_no_open_door(self, listed, capsys, name, told, said):
        assert main(["encoders"]) == 0
        (row,) = [
            line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {name} ")
        ]
        assert row.split()[-2:] == [told, "here"]
        assert main(["encoders", "show", name]) == 0
        page = capsys.readouterr().out
        (access,) = [line for line in page.splitlines() if line.startswith("  access ")]
        assert access.split(maxsplit=1)[1] == said
        assert ("if it asks for terms" in page) == (name == "unsaid")

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            (["--commercial"], ["far", "free", "small"]),
            (["--open", "--domain", "natural"], ["free", "small"]),
            (["--dim", "1536"], ["uni"]),
            (["--dim", "5"], []),
            (["u_ni-2"], ["uni"]),
            (["UNI"], ["free", "uni", "uni_v2"]),
            (["acme/open", "--domain=natural"], ["free", "small"]),
        ],
    )
    def test_what_is_chosen(self, listed, capsys, words, found):
        assert names(capsys, *words) == found

    def test_no_such_domain(self, listed, capsys):
        assert main(["encoders", "--domain", "zoo"]) == 2
        assert "natural and pathology are" in capsys.readouterr().err

    def test_json_holds_everything(self, listed, capsys):
        assert main(["encoders", "uni2", "--json"]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        assert record["name"] == "uni"
        assert record["names"] == {"peer": "uni2", "other": "U-NI 2"}
        assert record["card"]["params"] == 681_394_176
        assert record["distribution"] == "cards-dist"
        assert record["options"] == {}

    def test_of_the_whole_catalogue_nothing_heavy_is_imported(self):
        program = (
            "import sys; from microtome.__main__ import main; main(['encoders']);"
            "main(['encoders', 'show', 'uni_v2']); main(['encoders', '--json']);"
            "print(*[m for m in ('torch', 'timm', 'transformers', 'hydra') if m in sys.modules],"
            " file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == ""
        assert "MahmoodLab/UNI2-h" in done.stdout


class TestShow:
    def test_a_gated_one_says_the_steps(self, hub, capsys):
        assert main(["encoders", "show", "uni_v2"]) == 0
        out = capsys.readouterr().out
        steps = " ".join(out.partition("To use it")[2].split())
        order = [
            f"1. Open {hub.url}/MahmoodLab/UNI2-h",
            f"{hub.url}/settings/tokens",
            "export HF_TOKEN=TOKEN",
            "hf auth login",
            "microtome encoders fetch uni_v2",
            "microtome slide.svs output=out encoder=uni_v2",
        ]
        places = [steps.index(step) for step in order]
        assert places == sorted(places)
        for fact in ("1536 columns", "bf16", "681,394,176", "CC-BY-NC-ND-4.0", "256 px at 20x"):
            assert fact in out
        assert "uni2 (slide2vec" in out

    def test_variants_are_among_the_options(self, capsys):
        assert main(["encoders", "show", "virchow_v2"]) == 0
        options = capsys.readouterr().out.partition("Options")[2]
        assert "variant=cls_mean  cls | cls_mean." in options

    def test_other_resolutions_are_told(self, capsys):
        assert main(["encoders", "show", "virchow_v2"]) == 0
        assert "0.5 µm/px; also 0.25, 1 and 2 µm/px" in capsys.readouterr().out

    def test_the_gate_of_what_a_model_stands_on_is_told(self, capsys):
        assert main(["encoders", "show", "ticon"]) == 0
        steps = capsys.readouterr().out.partition("To use it")[2]
        assert "bioptimus/H-optimus-1, log in, accept the terms" in " ".join(steps.split())
        assert "varunb/TICON" not in steps

    def test_what_to_install(self, listed, capsys):
        assert main(["encoders", "show", "far"]) == 0
        out = capsys.readouterr().out
        assert "no_such_module missing" in out
        assert "1.  pip install far-away" in out

    def test_the_commit_that_remote_code_wants(self, listed, capsys, monkeypatch):
        row = encoder("code", card=OPEN, remote_code=True)
        listed.add(module("code", encoders=[row]), "code", "code-dist")
        assert main(["encoders", "show", "code"]) == 0
        assert "encoder=code encoder.code.revision=COMMIT" in capsys.readouterr().out

    def test_another_tools_name(self, listed, capsys):
        assert main(["encoders", "show", "Base_S"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("By 'Base_S' peer means small.\n\nsmall: ")

    def test_a_name_that_is_anothers_too(self, listed, capsys):
        assert main(["encoders", "show", "uni"]) == 0
        assert capsys.readouterr().out.startswith("Mind that other means free by 'uni'.\n\nuni: ")
        assert main(["encoders", "show", "far"]) == 0
        assert capsys.readouterr().out.startswith("far: ")

    def test_a_name_of_several(self, listed, capsys):
        assert main(["encoders", "show", "base"]) == 2
        assert "peer means free; other means small" in capsys.readouterr().err

    def test_a_typo(self, listed, capsys):
        assert main(["encoders", "show", "smal"]) == 2
        assert "Did you mean 'small'?" in capsys.readouterr().err

    def test_the_names_of_the_catalogue(self, capsys):
        assert main(["encoders", "show", "resnet50"]) == 0
        assert "trident means resnet50_trunc by 'resnet50'" in capsys.readouterr().out
        assert main(["encoders", "show", "hoptimus0"]) == 0
        assert "By 'hoptimus0' trident means h_optimus_0." in capsys.readouterr().out

    def test_json(self, listed, capsys):
        assert main(["encoders", "show", "uni", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["card"]["dim"] == 1536


@pytest.mark.parametrize("entry", get_registry().entries("encoder"), ids=lambda e: e.spec.name)
def test_every_card_can_be_shown(entry, capsys):
    assert main(["encoders", "show", entry.spec.name]) == 0
    out = capsys.readouterr().out
    assert f"encoder={entry.spec.name}" in out
    assert max(map(len, out.splitlines())) <= 200
    assert "None" not in out


class TestFetch:
    pytestmark = pytest.mark.usefixtures("hub")

    @pytest.fixture
    def published(self, hub):
        pytest.importorskip("timm")
        hub.commit("MahmoodLab/UNI2-h", pytorch_model__bin=b"weights of uni")
        hub.commit("paige-ai/Virchow2", model__safetensors=b"weights of virchow")
        return hub

    def test_a_folder_is_filled_and_its_use_printed(self, published, tmp_path, capsys):
        place = tmp_path / "with space"
        assert main(["encoders", "fetch", "uni_v2,virchow_v2", "--to", str(place)]) == 0
        told = capsys.readouterr()
        assert told.out.splitlines() == [
            f"export HF_HUB_CACHE='{place}/hub'",
            f"export TORCH_HOME='{place}/torch'",
            "export HF_HUB_OFFLINE=1",
        ]
        files = list(place.glob("hub/models--*/snapshots/*/*"))
        assert {path.read_bytes() for path in files} == {b"weights of uni", b"weights of virchow"}
        assert "uni_v2: downloading pytorch_model.bin, 14 B" in told.err
        assert any(line.startswith(f"virchow_v2: {place}/hub/") for line in told.err.splitlines())

    def test_the_environment_is_as_before(self, published, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_CACHE", "mine")
        main(["encoders", "fetch", "uni_v2", "--to", str(tmp_path / "to")])
        assert os.environ["HF_HUB_CACHE"] == "mine"
        assert "HF_HUB_OFFLINE" not in os.environ

    def test_one_that_fails_stops_no_other(self, published, tmp_path, capsys):
        published.gated.add("MahmoodLab/UNI")
        words = ["uni_v1", "nothing", "virchow2", "uni_v2", "--to", str(tmp_path / "to")]
        assert main(["encoders", "fetch", *words]) == 1
        told = capsys.readouterr()
        assert "export HF_HUB_OFFLINE=1" in told.out
        lines = told.err.splitlines()
        assert [line.partition(":")[0] for line in lines if "failed." in line] == [
            "uni_v1",
            "nothing",
            "virchow2",
        ]
        assert "encoder.uni_v1.weights=PATH" in told.err
        assert "Say virchow_v2." in told.err
        assert lines[-1].endswith("(14 B)")

    def test_all_that_fail_print_no_exports(self, hub, tmp_path, capsys):
        assert main(["encoders", "fetch", "nothing", "--to", str(tmp_path / "to")]) == 1
        assert capsys.readouterr().out == ""

    def test_what_is_there_is_not_fetched_twice(self, published, tmp_path, capsys):
        words = ["encoders", "fetch", "uni_v2", "--to", str(tmp_path / "to")]
        main(words)
        published.asked.clear()
        capsys.readouterr()
        assert main(words) == 0
        assert not [asked for asked in published.asked if asked.startswith("GET")]
        assert "downloading" not in capsys.readouterr().err

    def test_a_damaged_file_is_fetched_anew(self, published, tmp_path):
        words = ["encoders", "fetch", "uni_v2", "--to", str(tmp_path / "to")]
        main(words)
        (blob,) = tmp_path.glob("to/hub/models--*/blobs/*")
        blob.write_bytes(b"weig")
        assert main(words) == 0
        assert blob.read_bytes() == b"weights of uni"

    def test_a_certain_commit(self, published, tmp_path):
        old = published.entries["MahmoodLab/UNI2-h"][0][0]
        published.commit("MahmoodLab/UNI2-h", pytorch_model__bin=b"newer")
        assert main(["encoders", "fetch", f"uni_v2@{old}", "--to", str(tmp_path / "to")]) == 0
        (path,) = tmp_path.glob("to/hub/models--*/snapshots/*/*")
        assert (path.parent.name, path.read_bytes()) == (old, b"weights of uni")

    def test_of_what_has_no_weights(self, hub, capsys):
        assert main(["encoders", "fetch", "handcrafted"]) == 0
        told = capsys.readouterr()
        assert told.err == "handcrafted: needs nothing fetched\n"
        assert told.out == "export HF_HUB_OFFLINE=1\n"

    def test_a_place_that_cannot_be(self, hub, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert main(["encoders", "fetch", "uni_v2", "--to", str(tmp_path / "file")]) == 1
        assert "Give another --to" in capsys.readouterr().err

    def test_bars_in_a_terminal(self, published, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert main(["encoders", "fetch", "uni_v2", "--to", str(tmp_path / "to")]) == 0
        assert "downloading" not in capsys.readouterr().err

    def test_a_run_offline_uses_what_was_fetched(
        self, hub, synthetic, tmp_path, monkeypatch, capsys
    ):
        """The login node and the compute node, with a real architecture and weights."""
        torch = pytest.importorskip("torch")
        name = "lunit_vit_small_patch16_dino"
        made = get_registry().create("encoder", name)
        with torch.random.fork_rng(devices=[]):
            from safetensors.torch import save

            weights = save(made.build().state_dict())
        hub.commit(made.card.hub_id, model__safetensors=weights)
        place = tmp_path / "to"
        assert main(["encoders", "fetch", name, "--to", str(place)]) == 0
        asked = len(hub.asked)
        monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        words = [f"encoder={name}", "engine=inline", "device=cpu", "tiler.size=512"]
        words += [f"output={tmp_path / 'out'}", "tiler.magnification=20"]
        capsys.readouterr()
        assert main([str(synthetic.path), *words]) == 0
        assert (tmp_path / "out/patches/synthetic.h5").exists()
        assert len(hub.asked) == asked
        misfit = f"{name} was made for 224 px at 20x, the run gives 512 px at 20x."
        assert f"microtome: {misfit}" in capsys.readouterr().err.splitlines()


class TestOfflineReady:
    @pytest.fixture(autouse=True)
    def caches(self, hub, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))

    def test_nothing_but_what_needs_nothing(self, capsys):
        assert own(capsys, "--offline-ready") == ["handcrafted"]

    def test_what_was_fetched(self, hub, capsys, monkeypatch):
        pytest.importorskip("timm")
        hub.commit("MahmoodLab/UNI2-h", pytorch_model__bin=b"weights of uni")
        main(["encoders", "fetch", "uni_v2"])
        capsys.readouterr()
        asked = len(hub.asked)
        made = []
        create = Registry.create
        monkeypatch.setattr(
            Registry, "create", lambda *a, **k: made.append(a[2]) or create(*a, **k)
        )
        assert own(capsys, "--offline-ready") == ["handcrafted", "uni_v2"]
        asked_of = [name for name in made if not name.startswith("bench_")]
        assert asked_of == ["handcrafted", "uni_v2"], "the code of the others is not imported"
        assert len(hub.asked) == asked
        assert "HF_HUB_OFFLINE" not in os.environ

    def test_not_another_commit_than_the_pinned_one(self, hub, capsys, tmp_path):
        pytest.importorskip("timm")
        hub.commit("MahmoodLab/UNI", pytorch_model__bin=b"weights of uni")
        commit = hub.entries["MahmoodLab/UNI"][0][0]
        main(["encoders", "fetch", f"uni_v1@{commit}"])
        capsys.readouterr()
        assert names(capsys, "--offline-ready", "uni_v1") == []

    def test_not_what_lacks_a_package(self, hub, capsys, monkeypatch):
        pytest.importorskip("timm")
        hub.commit("MahmoodLab/UNI2-h", pytorch_model__bin=b"weights of uni")
        main(["encoders", "fetch", "uni_v2"])
        capsys.readouterr()
        from microtome.plugin import registry

        found = registry.installed
        monkeypatch.setattr(registry, "installed", lambda name: name != "timm" and found(name))
        assert "uni_v2" not in names(capsys, "--offline-ready")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kaiko_vits16", "resnet18", "dinov3_vits16", "clip_vit_b_32"])
def test_a_file_of_weights_needs_no_hub(name, hub, synthetic, tmp_path, monkeypatch):
    """One row of each loader."""
    entry = get_registry().find("encoder", name)
    if entry.missing:
        pytest.skip(f"{entry.missing} are not installed")
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file(get_registry().create("encoder", name).build().state_dict(), path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [f"encoder={name}", f"encoder.{name}.weights={path}", "engine=inline", "device=cpu"]
    words += [f"output={tmp_path / 'out'}", "tiler.size=512", "tiler.magnification=20"]
    assert main([str(synthetic.path), *words]) == 0
    assert (tmp_path / "out/patches/synthetic.h5").exists()
    assert hub.asked == []


def test_sizes_in_words():
    assert [_fetching._size(n) for n in (14, 1500, 2.73e9)] == ["14 B", "1.5 kB", "2.73 GB"]
