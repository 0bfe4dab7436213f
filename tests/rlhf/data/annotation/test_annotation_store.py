"""Tasks and judgements: who gets what, what is kept, what is refused."""

import sqlite3
import threading
from pathlib import Path

import pytest
from small_study import judge, marks, open_small_study, write_study

from rlhf.data.annotation.database import AnnotationDatabase
from rlhf.data.annotation.export import export_annotations, export_by_hand, refuse_peoples_annotations
from rlhf.data.annotation.store import Assignment, TaskRefused
from rlhf.data.annotators import load_annotations
from rlhf.errors import UserError
from rlhf.storage.tables import ANNOTATIONS, PAGE_ANNOTATIONS, read_table, write_table


def test_two_people_never_get_the_same_prompt(tmp_path: Path) -> None:
    store, items, _ = open_small_study(tmp_path)
    given = [judge(store, name) for name in ("ann", "bo", "ann", "bo")]
    assert sorted(given) == sorted(items.prompt_ids)
    assert store.next_task("cy") is None


def test_concurrent_requests_never_hand_out_one_prompt_twice(tmp_path: Path) -> None:
    write_study(tmp_path / "candidates", prompts=24, samples=1)
    first_server, items, _ = open_small_study(tmp_path)
    other_server, _, _ = open_small_study(tmp_path)
    given: list[str] = []
    start = threading.Barrier(8)

    def work(name: str) -> None:
        store = other_server if name in ("person 0", "person 1") else first_server
        start.wait()
        while store.next_task(name) is not None:
            given.append(judge(store, name))

    threads = [threading.Thread(target=work, args=(f"person {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == sorted(items.prompt_ids)
    assert first_server.progress().done == 24


def test_requests_of_one_person_at_once_get_one_task(tmp_path: Path) -> None:
    store, _, _ = open_small_study(tmp_path)
    keys: set[str] = set()
    threads = [threading.Thread(target=lambda: keys.add(store.next_task("ann").key)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 1


def test_overlap_gives_each_prompt_to_so_many_people(tmp_path: Path) -> None:
    store, items, _ = open_small_study(tmp_path, overlap=2)
    for name in ("ann", "bo"):
        assert sorted(judge(store, name) for _ in range(4)) == sorted(items.prompt_ids)
    assert store.next_task("cy") is None
    assert store.progress().done == store.progress().needed == 8


def test_an_abandoned_prompt_goes_to_another_when_its_lease_expires(tmp_path: Path) -> None:
    write_study(tmp_path / "candidates", prompts=1)
    store, _, clock = open_small_study(tmp_path, lease_s=600)
    abandoned = store.next_task("ann")
    clock.now += 599
    assert store.next_task("bo") is None
    clock.now += 2
    assert store.next_task("bo").prompt_id == abandoned.prompt_id
    with pytest.raises(TaskRefused) as refused:
        store.save_marks(abandoned.key, {0: marks(3)})
    assert refused.value.code == "lease_expired"
    assert store.next_task("ann") is None


def test_an_expired_prompt_that_nobody_took_is_ones_own_again_with_its_marks(tmp_path: Path) -> None:
    store, _, clock = open_small_study(tmp_path)
    task = store.next_task("ann")
    store.save_marks(task.key, {1: marks(5.5)})
    clock.now += 10_000
    again = store.next_task("ann")
    assert (again.key, again.sample_order, again.marks) == (task.key, task.sample_order, {1: marks(5.5)})


def test_every_stored_mark_renews_the_lease(tmp_path: Path) -> None:
    store, _, clock = open_small_study(tmp_path, lease_s=600)
    task = store.next_task("ann")
    for position in range(3):
        clock.now += 500
        store.save_marks(task.key, {position: marks(1)})
    clock.now += 500
    store.renew(task.key)
    clock.now += 500
    store.finish(task.key)


@pytest.mark.parametrize(
    ("position", "value", "code"),
    [(0, 7.5, "out_of_range"), (0, -1, "out_of_range"), (0, float("nan"), "out_of_range"), (3, 4, "out_of_range")],
)
def test_marks_out_of_range_are_refused_and_nothing_is_stored(
    tmp_path: Path, position: int, value: float, code: str
) -> None:
    store, _, _ = open_small_study(tmp_path)
    task = store.next_task("ann")
    with pytest.raises(TaskRefused) as refused:
        store.save_marks(task.key, {1: marks(2), position: marks(value)})
    assert refused.value.code == code
    assert store.rows() == []


def test_a_task_closes_only_when_all_is_judged(tmp_path: Path) -> None:
    store, _, _ = open_small_study(tmp_path)
    task = store.next_task("ann")
    store.save_marks(task.key, {0: marks(2), 2: marks(2)})
    with pytest.raises(TaskRefused, match="1 pictures are not scored"):
        store.finish(task.key)


def test_skipped_prompts_go_to_others_and_their_marks_do_not_count(tmp_path: Path) -> None:
    write_study(tmp_path / "candidates", prompts=1)
    store, _, _ = open_small_study(tmp_path)
    task = store.next_task("ann")
    store.save_marks(task.key, {0: marks(2)})
    store.skip(task.key)
    assert store.next_task("ann") is None
    assert store.rows() == []
    assert store.next_task("bo").prompt_id == task.prompt_id


def test_undo_opens_the_last_closed_task_with_its_marks(tmp_path: Path) -> None:
    store, _, clock = open_small_study(tmp_path)
    first = judge(store, "ann", 6)
    clock.now += 1
    skipped = store.next_task("ann")
    store.skip(skipped.key)
    store.next_task("ann")
    store.undo("ann")
    assert store.next_task("ann").key == skipped.key
    store.undo("ann")
    again = store.next_task("ann")
    assert (again.prompt_id, again.marks[0]) == (first, marks(6))
    store.save_marks(again.key, {0: marks(1)})
    store.finish(again.key)
    assert [r["overall"] for r in store.rows()].count(1.0) == 1
    assert len(store.rows()) == 3


def test_undo_passes_over_a_skipped_prompt_that_is_anothers_now(tmp_path: Path) -> None:
    write_study(tmp_path / "candidates", prompts=1)
    store, _, _ = open_small_study(tmp_path)
    store.skip(store.next_task("ann").key)
    judge(store, "bo")
    with pytest.raises(TaskRefused, match="nothing to undo"):
        store.undo("ann")


def test_a_share_of_prompts_is_shown_to_the_same_person_again(tmp_path: Path) -> None:
    write_study(tmp_path / "candidates", prompts=20, samples=2)
    store, items, _ = open_small_study(tmp_path, repeat=0.25)
    seen = [judge(store, "ann") for _ in range(25)]
    assert store.next_task("ann") is None
    assert sorted(set(seen)) == sorted(items.prompt_ids)
    rows = store.rows("ann")
    assert sum(row["round"] for row in rows) == 5 * 2
    again = [i for i, name in enumerate(seen) if name in seen[:i]]
    assert all(i - seen.index(seen[i]) > 1 for i in again)


def test_the_order_of_pictures_differs_between_prompts_and_covers_all(tmp_path: Path) -> None:
    write_study(tmp_path / "candidates", prompts=8, samples=6)
    store, _, _ = open_small_study(tmp_path)
    orders = set()
    for _ in range(8):
        task = store.next_task("ann")
        assert sorted(task.sample_order) == list(range(6))
        orders.add(task.sample_order)
        store.skip(task.key)
    assert len(orders) > 1


def test_export_is_what_the_reward_stage_reads_and_tells_repeats_apart(tmp_path: Path) -> None:
    store, _, _ = open_small_study(tmp_path, repeat=1.0)
    for value in (1, 2, 3, 4, 5, 6, 7):
        judge(store, "ann", value)
    out = tmp_path / "annotations"
    assert export_annotations(store, out) == 21
    assert len(load_annotations(out)) == 21
    rows = read_table(out, PAGE_ANNOTATIONS)
    assert len({(r["prompt_id"], r["sample_index"], r["annotator"], r["round"]) for r in rows}) == 21
    assert sum(r["round"] for r in rows) == 9
    assert not any(r["is_simulated"] for r in rows)
    assert (out / "agreement.json").is_file()


def test_a_half_judged_prompt_is_exported_as_far_as_it_goes(tmp_path: Path) -> None:
    store, items, _ = open_small_study(tmp_path)
    store.save_marks(store.next_task("ann").key, {0: marks(3)})
    assert export_by_hand(items, tmp_path / "annotations", None) == 1


def test_export_without_judgements_or_database_says_so(tmp_path: Path) -> None:
    store, items, _ = open_small_study(tmp_path)
    with pytest.raises(UserError, match="holds no judgements yet"):
        export_by_hand(items, tmp_path / "annotations", None)
    with pytest.raises(UserError, match=r"no annotations\.db there"):
        export_by_hand(items, tmp_path / "elsewhere", None)


def test_a_database_of_other_candidates_is_refused(tmp_path: Path) -> None:
    open_small_study(tmp_path)
    write_study(tmp_path / "candidates", shade=-0.5)
    with pytest.raises(UserError, match="holds judgements of other candidates"):
        open_small_study(tmp_path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "--database"),
        ("sqlite://", "in memory would lose"),
        ("sqlite:////proc/nowhere/a.db", "cannot be written"),
        ("oracle+unknown://x", "--database"),
    ],
)
def test_a_database_that_cannot_be_opened_is_named_with_a_remedy(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        AnnotationDatabase(url, "f")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "annotations.db").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=r"annotations\.db: cannot be opened as a database"):
        open_small_study(tmp_path)


def test_the_database_is_a_write_ahead_log_that_is_synchronised_in_full(tmp_path: Path) -> None:
    store, _, _ = open_small_study(tmp_path)
    with store.database.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    with sqlite3.connect(tmp_path / "annotations" / "annotations.db") as other:
        assert other.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_peoples_and_simulated_annotations_do_not_overwrite_each_other(tmp_path: Path) -> None:
    known = {"prompt_id": "p", "annotator": "ann", "annotated_at": None, "is_simulated": True}
    row = dict.fromkeys(ANNOTATIONS.names, 0) | known
    write_table([row], ANNOTATIONS, tmp_path / "annotations" / "annotations.parquet")
    with pytest.raises(UserError, match="from elsewhere"):
        open_small_study(tmp_path)
    (tmp_path / "annotations" / "annotations.parquet").unlink()
    open_small_study(tmp_path)
    with pytest.raises(UserError, match="people's annotations"):
        refuse_peoples_annotations(tmp_path / "annotations")


@pytest.mark.parametrize("settings", [{"overlap": 0}, {"repeat": float("nan")}, {"lease_s": float("inf")}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="--overlap"):
        Assignment(order=(), **settings)
