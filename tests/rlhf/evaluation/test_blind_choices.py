"""People compare two contestants: who is preferred, what is stored, and that nobody sees who is who."""

import signal
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from command_line import rlhf
from small_parts import small_prompts
from small_study import GREY, start_command, write_evaluation

from rlhf.data.annotation.export import open_study
from rlhf.data.annotation.store import AnnotationStore, Assignment, Task
from rlhf.errors import UserError
from rlhf.evaluation.blind_choices import (
    BLIND_CHOICES,
    Choice,
    Pairs,
    Repeats,
    lay_out_pairs,
    read_summary,
    summarise_choices,
)
from rlhf.reports.intervals import estimate_share
from rlhf.storage.images import decode_image
from rlhf.storage.tables import read_table


def open_pairs(folder: Path, **options: int) -> tuple[Pairs, AnnotationStore]:
    evaluation = write_evaluation(folder / "evaluation", **options)
    pairs = lay_out_pairs(evaluation, "aligned", "base", evaluation / "prompts", folder / "out")
    assignment = Assignment(order=tuple(pairs.items.prompt_ids), repeat=0.0)
    return pairs, open_study(pairs.items, assignment, folder / "out", None)


def place_of(pairs: Pairs, task: Task, name: str) -> int:
    """Where a contestant's picture stands on the page, told by its grey."""
    hole = pairs.items.masks[task.prompt_id]
    for position, sample in enumerate(task.sample_order):
        picture = np.asarray(decode_image(pairs.items.candidates[task.prompt_id][sample]))
        if abs(picture[hole].mean() / 127.5 - 1 - GREY[name]) < 0.02:
            return position
    raise AssertionError(name)


def choose(pairs: Pairs, store: AnnotationStore, annotator: str, preferred: str | None) -> Task:
    """What the page does at a choice."""
    task = store.next_task(annotator)
    assert task is not None
    better = None if preferred is None else place_of(pairs, task, preferred)
    for position in (0, 1):
        share = 0.5 if better is None else float(position == better)
        store.save_marks(task.key, {position: {"structure": share, "texture": share, "overall": share}})
    store.finish(task.key)
    return task


def test_the_preferred_contestant_is_told_by_its_picture_wherever_it_stood(tmp_path: Path):
    pairs, store = open_pairs(tmp_path, prompts=8)
    wanted = ["aligned", "base", None, "aligned", "aligned", "base", "aligned", "base"]
    tasks = [choose(pairs, store, "ann", name) for name in wanted]
    assert len({task.sample_order for task in tasks}) == 2
    assert pairs.export(store, tmp_path / "out") == len(wanted)
    rows = read_table(tmp_path / "out" / "preferences.parquet", BLIND_CHOICES)
    assert {row["prompt_id"]: row["preferred"] for row in rows} == {
        t.prompt_id: n for t, n in zip(tasks, wanted, strict=True)
    }
    summary = read_summary(tmp_path / "out" / "preference.json")
    assert summary.preference.value == (4 + 0.5) / 8
    assert summary.no_difference == 1 / 8


def test_a_pair_half_marked_and_one_skipped_count_for_nobody(tmp_path: Path):
    pairs, store = open_pairs(tmp_path)
    choose(pairs, store, "ann", "base")
    skipped = store.next_task("ann")
    store.save_marks(skipped.key, {p: {"structure": p, "texture": p, "overall": p} for p in (0, 1)})
    store.skip(skipped.key)
    half = store.next_task("ann")
    store.save_marks(half.key, {0: {"structure": 1, "texture": 1, "overall": 1}})
    assert [choice.preferred for choice in pairs.read_choices(store.rows())] == ["base"]


def rows_of(*choices: tuple[str, str | None, int], annotator: str = "ann") -> list[Choice]:
    return [
        Choice(
            prompt_id=f"{photograph}{i}" if not round_ else f"{photograph}0",
            photograph=photograph,
            hole="box",
            annotator=annotator,
            round=round_,
            preferred=preferred,
            annotated_at=datetime.now(UTC),
        )
        for i, (photograph, preferred, round_) in enumerate(choices)
    ]


def test_the_interval_is_that_of_whole_photographs_and_second_looks_do_not_count():
    chosen = [("a", "x"), ("a", "x"), ("b", "y"), ("b", None), ("c", "x"), ("d", "y"), ("e", "x"), ("f", "x")]
    rows = rows_of(*((photograph, preferred, 0) for photograph, preferred in chosen), ("a", "y", 1))
    found = summarise_choices(rows, "x", "y")
    points = np.array([{"x": 1.0, "y": 0.0, None: 0.5}[preferred] for _, preferred in chosen])
    expected = estimate_share(points, [photograph for photograph, _ in chosen])
    preference = found.preference
    assert (preference.value, preference.clusters, preference.choices) == (expected.value, 6, 8)
    assert (preference.low, preference.high) == (expected.low, expected.high)
    assert found.repeated == Repeats(choices=1, same=0.0)
    mirrored = summarise_choices(rows, "y", "x").preference
    assert mirrored.value == pytest.approx(1 - expected.value)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - preference.high, 1 - preference.low))


def test_fewer_than_six_photographs_give_no_interval():
    found = summarise_choices(rows_of(*((photograph, "x", 0) for photograph in "aabcde")), "x", "y").preference
    assert (found.value, found.clusters) == (1.0, 5)
    assert np.isnan([found.low, found.high]).all()


def test_only_prompts_that_both_filled_are_compared(tmp_path: Path):
    pairs, _ = open_pairs(tmp_path, prompts=3, missing=1)
    assert pairs.items.prompt_ids == [p.prompt_id for p in small_prompts(3)[1:]]


def test_what_cannot_be_compared_is_refused(tmp_path: Path):
    evaluation = write_evaluation(tmp_path / "evaluation", prompts=2, missing=2 - 1)
    for names, message in (
        (("base", "base"), "with itself"),
        (("base", "telea"), r"no contestant telea there; it holds aligned, base"),
    ):
        with pytest.raises(UserError, match=message):
            lay_out_pairs(evaluation, *names, evaluation / "prompts", tmp_path / "out")
    with pytest.raises(UserError, match="no contestant a there; let `rlhf evaluate` write it"):
        lay_out_pairs(tmp_path, "a", "b", evaluation / "prompts", tmp_path / "out")


def test_the_command_serves_pairs_without_names_and_tells_the_preference_when_stopped(tmp_path: Path):
    evaluation = write_evaluation(tmp_path / "evaluation")
    command = ["compare", "aligned", "base", "--evaluation", str(evaluation), "--prompts", str(evaluation / "prompts")]
    command += ["--out", str(tmp_path / "out"), "--repeat", "0"]
    process, address = start_command(*command)
    with httpx.Client(base_url=address) as client:
        page = client.get("/").text
        assert "No difference" in page
        for _ in range(3):
            task = client.post("/api/next", json={"annotator": "ann"})
            assert not [name for name in GREY if name in task.text + page]
            key = task.json()["task"]["key"]
            halves = [{"position": p, "structure": 0.5, "texture": 0.5, "overall": 0.5} for p in (0, 1)]
            client.put(f"/api/tasks/{key}/marks", json={"marks": halves}).raise_for_status()
            client.post(f"/api/tasks/{key}/finish").raise_for_status()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0]
    assert "aligned over base: 50.0% (no interval) of 3 choices" in said
    again = rlhf(*command, "--export")
    assert again.returncode == 0, again.stderr
    assert "no difference seen in 100%" in again.stdout
