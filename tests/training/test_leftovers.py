"""What killed tasks leave is named and swept, and what is finished may be moved."""

from __future__ import annotations

import json
import shutil

from run_checks import leave_dead, leftovers

from microtome.__main__ import main
from microtome.plugin.registry import get_registry
from microtome.store.verify import verify_output

RUN = ("engine=inline", "device=cpu", "threads=1")
SAMPLE = ("task=sample", "name=kt")
TRAIN = (
    "task=train", "name=kt", "model=small_cnn", "input_size=32", "num_workers=0", "max_epochs=1",
    "lr=3e-3", "split.val_size=0.25", "evaluate.bootstrap=0", "heatmaps=false",
)  # fmt: skip
PREDICT = ("task=predict", "heatmap.kind=none", "heatmap.png=false")
EVALUATE = ("task=evaluate", "bootstrap=0")


def do(output, *words):
    assert main([f"output={output}", *RUN, *words]) == 0


def test_leftovers_are_named_and_swept_and_a_moved_training_tells_where_it_is(
    output, cohort, tmp_path, capsys
):
    chain = (SAMPLE, (str(cohort.manifest), *TRAIN), PREDICT)
    for words in chain:
        do(output, *words)
    training, predicted = output / "training/kt", output / "predictions/kt"
    measure = (*EVALUATE, f"predictions_file={predicted / 'predictions.parquet'}")
    do(output, *measure)
    left = [
        output / "samples/kt.parquet",
        training / "checkpoints/best.pt",
        training / "result.json",
        predicted / "evaluation/test/plots/roc.png",
        predicted / "heatmaps/a.png",
        predicted / "predictions.parquet",
        output / "patches/a.h5",
        output / "patches/b",
        next(output.glob("runs/*/run.json")),
    ]
    leave_dead(*left)
    found = verify_output(output, get_registry())
    assert len(leftovers(output)) == 9
    assert [fault.kind for fault in found.faults] == ["leftover"] * 9
    for words, swept in ((SAMPLE, 2), (chain[1], 2), (measure, 1), (PREDICT, 4)):
        before = len(leftovers(output))
        do(output, *words)
        assert before - len(leftovers(output)) == swept, words
    assert not leftovers(output)
    capsys.readouterr()
    moved = shutil.move(output, tmp_path / "moved")
    do(moved, *chain[1])
    shown = capsys.readouterr().out
    assert f"{moved / 'training/kt'}: already trained" in shown
    assert f"Page: {moved / 'training/kt/evaluation.html'}" in shown
    assert str(output) not in shown
    assert str(output) not in (moved / "training/kt/result.json").read_text("utf-8")
    records = [json.loads(path.read_text("utf-8")) for path in moved.rglob("run.json")]
    folders = {r["outcome"]["folder"] for r in records if r.get("task") == "train"}
    assert folders == {str(output / "training/kt"), str(moved / "training/kt")}
