"""Tables opened by some columns: no picture is read before it is asked for, and files that disagree are refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_annotations import make_world, write_world

from rlhf.data.annotated_images import join_annotations
from rlhf.data.annotators import load_annotations
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.prompts import PromptTable
from rlhf.errors import UserError
from rlhf.storage.indexed_table import KEPT_GROUPS, IndexedTable
from rlhf.storage.tables import CANDIDATES, SCHEMA_KEY, image_cell, read_table, write_table

KEYS = ("prompt_id", "sample_index")


def candidates(first: int, count: int) -> list[dict]:
    settings = {"seed": 0, "policy_version": 0, "num_inference_steps": 1, "eta": 0.0, "first_step": 0}
    numbers = range(first, first + count)
    return [
        settings | {"prompt_id": f"p{i}", "sample_index": 0, "image": image_cell(f"{i}".encode(), "c.png")}
        for i in numbers
    ]


def test_rows_of_many_files_are_taken_as_a_whole_reading_gives_them(tmp_path: Path) -> None:
    for number in range(4):
        write_table(candidates(40 * number, 40), CANDIDATES, tmp_path / f"part-{number}.parquet")
    table, rows = IndexedTable(tmp_path, CANDIDATES, KEYS), read_table(tmp_path, CANDIDATES)
    assert table.columns.to_pylist() == [{name: row[name] for name in KEYS} for row in rows]
    places = [159, 0, 16, 15, 16, 40, 39, 80]
    assert table.take(places) == [rows[place] for place in places]
    assert table.take(places, ["image"]) == [{"image": rows[place]["image"]} for place in places]
    for place in (*range(159, -1, -1), 159):
        assert table.take([place], ["image"])[0]["image"] == rows[place]["image"], "groups leave memory and come back"
    assert len(table._recent) == KEPT_GROUPS


def test_opening_and_joining_read_no_picture(tmp_path: Path) -> None:
    folders = [Path(path) for path in write_world(tmp_path, *make_world(4))]
    for folder, columns in ((folders[0], ("image", "mask")), (folders[1], ("image",))):
        (file,) = folder.glob("*.parquet")
        erase_pages(file, columns)
    prompts = PromptTable(folders[0])
    images = CandidateTable(folders[1], prompts)
    data = join_annotations(prompts, images, load_annotations(folders[2]))
    assert len(data.keys) == len(make_world(4)[2])
    with pytest.raises(UserError, match=r"prompts\.parquet: not a Parquet file of this kind"):
        data.pictures.show(data.keys[:1])


def erase_pages(path: Path, columns: tuple[str, ...]) -> None:
    """Overwrites what the file holds of some columns."""
    metadata, content = pq.read_metadata(path), bytearray(path.read_bytes())
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(metadata.num_columns)):
            if column.path_in_schema.split(".")[0] in columns:
                start = column.dictionary_page_offset or column.data_page_offset
                content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


def test_a_file_that_lacks_a_column_which_another_holds_is_refused_with_both_names(tmp_path: Path) -> None:
    write_table(candidates(0, 3), CANDIDATES, tmp_path / "a.parquet")
    table = pa.Table.from_pylist(candidates(3, 3), schema=CANDIDATES).drop_columns(["eta"])
    pq.write_table(table, tmp_path / "b.parquet")
    for read in (lambda: IndexedTable(tmp_path, CANDIDATES, KEYS), lambda: read_table(tmp_path, CANDIDATES)):
        with pytest.raises(UserError, match=r"b\.parquet: column eta missing.*a\.parquet beside it holds it"):
            read()


def test_files_of_two_versions_are_refused_with_both_names(tmp_path: Path) -> None:
    write_table(candidates(0, 3), CANDIDATES, tmp_path / "a.parquet")
    older = pa.Table.from_pylist(candidates(3, 3), schema=CANDIDATES.with_metadata({SCHEMA_KEY: "0"}))
    pq.write_table(older, tmp_path / "b.parquet")
    for read in (lambda: IndexedTable(tmp_path, CANDIDATES, KEYS), lambda: read_table(tmp_path, CANDIDATES)):
        with pytest.raises(UserError, match=r"b\.parquet: has schema 0, and a\.parquet beside it schema 1; .*again"):
            read()


def test_a_missing_picture_and_an_unknown_kind_are_refused_at_opening(tmp_path: Path) -> None:
    rows = candidates(0, 40)
    rows[37]["image"] = None
    write_table(rows, CANDIDATES, tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"c\.parquet: row 37 \(prompt p37\): image is empty"):
        IndexedTable(tmp_path, CANDIDATES, KEYS)
    table = pa.Table.from_pylist(candidates(0, 3), schema=CANDIDATES)
    numbers = table.set_column(3, "image", pa.array([1.0, 2.0, 3.0]))
    pq.write_table(numbers, tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"c\.parquet: column image holds double; write it as struct"):
        IndexedTable(tmp_path, CANDIDATES, KEYS)


def test_threads_read_one_table_at_the_same_time(tmp_path: Path) -> None:
    """Pictures are read ahead by a thread while the caller reads others: more groups than stay in memory."""
    for number in range(2 * KEPT_GROUPS):
        write_table(candidates(number, 1), CANDIDATES, tmp_path / f"part-{number:02d}.parquet")
    table = IndexedTable(tmp_path, CANDIDATES, KEYS)
    places = list(range(2 * KEPT_GROUPS)) * 20
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(lambda place: table.take([place], ["image"]), places):
            assert read[0]["image"]["bytes"]


def test_a_candidate_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    prompts, _, _ = make_world(photographs=2)
    named = [row | {"prompt_id": "photograph-01"} for row in (*candidates(0, 1), *candidates(1, 1))]
    write_table(named, CANDIDATES, tmp_path / "candidates.parquet")
    with pytest.raises(UserError, match=r"row 1 repeats photograph-01 sample 0 of row 0; remove one"):
        CandidateTable(tmp_path, prompts)
