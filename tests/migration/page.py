"""The migration page: its rows, the files that its commands name, and how these are run here."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from PIL import Image

from microtome.__main__ import main
from microtome.commands import find_verbs
from microtome.commands.atlaspatch import translate
from microtome.testing import make_slide

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrate-atlaspatch.md"
BASE = "microtome slide.svs output=out preset=atlaspatch tiler.size=256 tiler.magnification=20"
STAND_INS = {"resnet50": "resnet18", "ResNet50": "ResNet18", "uni_v2": "handcrafted"}
QUOTED = re.compile(r"`([^`]+)`(?P<composed> \*\(composed\)\*)?")
OPTIONS = re.compile(r"[a-z][\w.]*=\S+( [a-z][\w.]*=\S+)*")

SIDE = 512
"""Level-0 pixels of a tile of 256 px at 20x."""

PRESET_TILES = {(column, row) for row in range(3) for column in range(4)} - {(0, 0)} | {(3, 3)}
"""The preset's tiles on `make_mask`, as columns and rows of the lattice."""

PLUGIN = """
import numpy as np
import torch
from atlas_patch.models.patch.custom import CustomEncoderComponents, register_custom_encoder


def register_feature_extractors(registry, device, dtype, num_workers):
    def loader(device, dtype):
        def preprocess(image):
            return torch.as_tensor(np.array(image), dtype=torch.float32).mean(dim=(0, 1)) / 255

        model = torch.nn.Identity()
        return CustomEncoderComponents(model=model, preprocess=preprocess, forward_fn=model)

    register_custom_encoder(
        registry=registry, name="my_encoder", embedding_dim=3, loader=loader, device=device,
        dtype=dtype, num_workers=num_workers,
    )
"""


@dataclass(frozen=True)
class Said:
    """A command of a row, or options that stand for one."""

    text: str
    composed: bool


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    items: tuple[str, ...]
    here: tuple[Said, ...]
    beside: tuple[str, ...]


@dataclass
class Ran:
    """What running a row left.

    Attributes:
        folder: Where it ran.
        masks: How many were taken from files.
        said: What each command printed.
    """

    folder: Path
    masks: int = 0
    said: list[str] = field(default_factory=list)

    def read(self, output="out0", name="coords"):
        with h5py.File(self.folder / output / "patches" / "slide.h5") as file:
            return file[name][:]

    def attributes(self, output="out0", name="/"):
        with h5py.File(self.folder / output / "patches" / "slide.h5") as file:
            return dict(file[name].attrs)

    def features(self, output="out0"):
        with h5py.File(self.folder / output / "patches" / "slide.h5") as file:
            return sorted(file["features"])

    def tiles(self, output="out0"):
        return {(x // SIDE, y // SIDE) for x, y in self.read(output)[:, :2].tolist()}

    def names(self, where):
        return sorted(path.name for path in (self.folder / where).iterdir())

    def beside(self, options):
        """Run with other options; give the name of the output."""
        output = "beside-" + re.sub(r"\W", "-", options)
        assert run(words_of(f"task=coords {options}", output)) == 0
        return output


def rows():
    found = []
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if not line.startswith("| ") or not re.match(r"[A-G]\d", cells[0]):
            continue
        here = [Said(m[1], bool(m["composed"])) for m in QUOTED.finditer(cells[2])]
        beside = [m[1] for m in QUOTED.finditer(cells[3]) if OPTIONS.fullmatch(m[1])]
        found.append(Row(tuple(cells[0].split(", ")), tuple(here), tuple(beside)))
    return found


def make_mask():
    """Draw tissue, 64 pixels a tile: three rows of tiles with holes, and two small pieces.

    Nine holes that no tile's centre is in are larger than the next: of those about the centres
    of the first three tiles one is of the ten largest, one is not, and one is tiny. One piece is
    under a probe of its tile, the last; the other is under none of its tile's.
    """
    mask = np.zeros((256, 256), np.uint8)
    mask[:192] = 255
    for number in range(9):
        top, left = number // 4 * 64 + 48, number % 4 * 64 + 48
        mask[top : top + 15, left : left + 15] = 0
    mask[24:40, 24:40] = mask[26:38, 90:102] = mask[31:33, 159:161] = 0
    mask[200:216, 200:216] = mask[-8:, :8] = 255
    return mask


def make_things(folder):
    """Make the files that the page's commands name."""
    make_slide(folder / "slide.svs", size=(2048, 2048), levels=(1, 2.003, 8), tissue=0.4)
    (folder / "masks").mkdir()
    Image.fromarray(make_mask()).save(folder / "masks" / "slide.png")
    (folder / "slides" / "deep").mkdir(parents=True)
    for seed, name in enumerate(("a.svs", "b.svs", "deep/c.svs"), 1):
        path = folder / "slides" / name
        make_slide(path, size=(1024, 1024), tissue=0.6, seed=seed)
        Image.new("L", (128, 128), 255).save(folder / "masks" / f"{path.stem}.png")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(90, 200, (512, 640, 3), np.uint8)
    pixels[..., 1] //= 2
    Image.fromarray(pixels).save(folder / "images" / "plain.png")
    Image.new("L", (80, 64), 255).save(folder / "masks" / "plain.png")
    (folder / "mpp.csv").write_text("wsi,mpp\nslide,0.5\n")
    (folder / "plugin.py").write_text(PLUGIN)
    rows = ("case_id,slide_path,mpp", "P1,slides/a.svs,0.25", "P1,slides/b.svs,")
    (folder / "cases.csv").write_text("\n".join(rows))


def words_of(text, output):
    """Give the words behind ``microtome`` of a command, or of options."""
    if not text.startswith("microtome "):
        text = f"{BASE} {text}".replace("output=out", f"output={output}")
    text = re.sub("|".join(STAND_INS), lambda match: STAND_INS[match[0]], text)
    return shlex.split(text)[1:]


def with_stand_ins(words):
    """Add what a run wants that is not here: masks, and random weights."""
    if words[0] in find_verbs() and (words[0] != "atlaspatch" or words[1] == "info"):
        return words
    more = ["engine=inline"]
    if any("resnet18" in word.lower() for word in words):
        more.append("encoder.resnet18.weights=random")
    if not any(word.startswith("segmenter=") for word in words):
        more += ["segmenter=file", "segmenter.folder=masks"]
    return [*words, *more]


def run(words):
    """Run a command with what is here."""
    return main(with_stand_ins(words))


def compose(words):
    """Print a command's configuration."""
    if words[0] == "atlaspatch":
        words, _ = translate(words[1], words[2:])
    return main([*words, "--cfg", "job"])


def not_in(config, text):
    """Give those of some options that a configuration does not have."""
    options = [word for word in words_of(text, "out") if "=" in word]
    given = dict(word.split("=", 1) for word in options)  # of two, the later counts
    checked = given.keys() - {"output", "preset"}
    return [f"{key}={given[key]}" for key in checked if not _has(config, key, given[key])]


def _has(config, key, value):
    wanted: Any = yaml.safe_load(value)
    node = config
    for part in key.split("."):
        node = node[part]
    if key in ("encoder", "writer"):
        node, wanted = [*node], [wanted.lower()] if isinstance(wanted, str) else wanted
        return node == [str(name).lower() for name in wanted]
    if key == "encoder_plugin":
        return [Path(path).name for path in node] == [wanted]
    if key == "segmenter":
        wanted = wanted.partition("_")[0]  # sam2_atlaspatch is a configuration of sam2
    node = node["plugin"] if isinstance(node, dict) else node
    return node == ([wanted] if isinstance(node, list) > isinstance(wanted, list) else wanted)


def config_of(output):
    """Read the configuration of an output's run."""
    (path,) = output.glob("runs/*/.hydra/config.yaml")
    return yaml.safe_load(path.read_text("utf-8"))
