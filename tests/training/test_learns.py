"""A small network learns what tumour looks like from pixels, and nothing from shuffled labels."""

from __future__ import annotations

import json

import pytest

from microtome.__main__ import main
from microtome.testing import make_cohort

WORDS = (
    "task=train", "model=small_cnn", "num_workers=0", "evaluate.bootstrap=0", "heatmaps=false",
    "device=cpu", "threads=1", "engine=inline", "lr=3e-3",
)  # fmt: skip


def auroc(output, cohort, *words, name="small_cnn"):
    """Train, and give the AUROC of the tiles of slides that were held out."""
    assert main([str(cohort.manifest), f"output={output}", *WORDS, f"name={name}", *words]) == 0
    found = json.loads((output / "training" / name / "metrics.json").read_text())
    assert found["split"] == "test"
    return next(
        metric["value"]
        for metric in found["metrics"]
        if (metric["level"], metric["metric"]) == ("tile", "auroc")
    )


def test_it_learns_from_a_few_tiles(output, cohort):
    words = ("input_size=64", "batch_size=16", "max_epochs=12", "patience=0", "split.val_size=0")
    assert auroc(output, cohort, *words) >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bar(tmp_path):
    cohort = make_cohort(tmp_path / "cohort", slides=16, tests=5)
    output = tmp_path / "out"
    assert main([
        str(cohort.manifest), f"output={output}", "task=index", "labels.classes.tumor=[Tumor]",
        "labels.exclude=[Exclusion]", "tiler.size=128", "tiler.mpp=0.5", "engine=inline",
    ]) == 0  # fmt: skip
    words = ("split.val_size=0.2", "max_epochs=12", "patience=3")
    learned = auroc(output, cohort, *words)
    shuffled = auroc(output, cohort, *words, "shuffle_labels=true", name="shuffled")
    print(f"AUROC {learned:.4f}, with shuffled labels {shuffled:.4f}")
    assert learned >= 0.95
    assert 0.35 <= shuffled <= 0.65
