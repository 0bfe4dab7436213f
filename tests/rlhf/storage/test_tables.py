"""Parquet tables: what is written comes back, and what is damaged is refused by name."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_torch_save, atomic_write, atomic_write_json, atomic_write_text
from rlhf.storage.tables import ANNOTATIONS, CANDIDATES, EVALUATION, PROMPTS, image_cell, read_table, write_table


def candidate_rows(count: int = 250) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"prompt-{i // 4}",
            "sample_index": i % 4,
            "seed": 2**40 + i,
            "image": image_cell(bytes([i % 256, 0, 255]), f"{i}.png"),
            "policy_version": 3,
            "num_inference_steps": 10,
            "eta": 0.5,
            "first_step": 0,
        }
        for i in range(count)
    ]


def annotation_row() -> dict[str, Any]:
    marks = dict.fromkeys(("structure", "texture", "overall"), 3.5)
    known = {"prompt_id": "p", "sample_index": 1, "annotator": "ann", "annotated_at": None, "is_simulated": False}
    return known | marks


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = candidate_rows()
    write_table(rows, CANDIDATES, tmp_path / "candidates.parquet")
    assert read_table(tmp_path, CANDIDATES) == rows
    assert read_table(tmp_path / "candidates.parquet", CANDIDATES) == rows


def test_times_come_back_in_utc(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    row = annotation_row() | {"annotated_at": now}
    write_table([row], ANNOTATIONS, tmp_path / "a.parquet")
    assert read_table(tmp_path, ANNOTATIONS) == [row]


def test_several_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = candidate_rows(6)
    write_table(rows[3:], CANDIDATES, tmp_path / "b.parquet")
    write_table(rows[:3], CANDIDATES, tmp_path / "a.parquet")
    (tmp_path / "skipped.json").write_text("[]")
    assert read_table(tmp_path, CANDIDATES) == rows


def test_images_are_declared_as_hugging_face_does(tmp_path: Path) -> None:
    for name, schema in {"p": PROMPTS, "c": CANDIDATES, "a": ANNOTATIONS, "e": EVALUATION}.items():
        path = tmp_path / f"{name}.parquet"
        write_table([dict.fromkeys(schema.names)], schema, path)
        written = pq.read_schema(path)
        features = json.loads(written.metadata[b"huggingface"])["info"]["features"]
        assert list(features) == schema.names
        for field in written:
            is_image = pa.types.is_struct(field.type)
            assert features[field.name]["_type"] == ("Image" if is_image else "Value")
            if is_image:
                assert field.type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert features["reward"] == {"dtype": "float32", "_type": "Value"}


def test_columns_in_another_order_or_narrower_type_are_taken(tmp_path: Path) -> None:
    rows = candidate_rows(3)
    table = pa.Table.from_pylist(rows, schema=CANDIDATES)
    table = table.append_column("note", pa.array(["x"] * 3)).select([*reversed(CANDIDATES.names), "note"])
    table = table.set_column(table.column_names.index("sample_index"), "sample_index", pa.array([0, 1, 2], pa.int8()))
    pq.write_table(table, tmp_path / "c.parquet")
    assert read_table(tmp_path, CANDIDATES) == rows


def test_a_missing_column_is_named_with_its_file(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(candidate_rows(3), schema=CANDIDATES).drop_columns(["seed", "eta"])
    pq.write_table(table, tmp_path / "odd.parquet")
    with pytest.raises(UserError, match=r"odd\.parquet: column seed, eta missing"):
        read_table(tmp_path, CANDIDATES)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    rows = [row | {"sample_index": "first"} for row in candidate_rows(3)]
    schema = CANDIDATES.set(1, pa.field("sample_index", pa.string()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "odd.parquet")
    with pytest.raises(UserError, match=r"odd\.parquet: column sample_index holds string; write it as int32"):
        read_table(tmp_path, CANDIDATES)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused_by_name(share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.parquet"
    write_table(candidate_rows(), CANDIDATES, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cut\.parquet"):
        read_table(tmp_path, CANDIDATES)


def test_a_file_with_damaged_pages_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bent.parquet"
    write_table(candidate_rows(), CANDIDATES, path)
    whole = bytearray(path.read_bytes())
    whole[4:200] = b"\xff" * 196
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"bent\.parquet"):
        read_table(tmp_path, CANDIDATES)


def test_empty_tables_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Parquet files"):
        read_table(tmp_path, CANDIDATES)
    with pytest.raises(UserError, match="no Parquet files"):
        read_table(tmp_path / "absent", CANDIDATES)
    write_table([], CANDIDATES, tmp_path / "c.parquet")
    with pytest.raises(UserError, match="no rows"):
        read_table(tmp_path, CANDIDATES)


def fail_midway(temporary: Path) -> None:
    temporary.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_previous_file_whole_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match=r"t\.bin: cannot be written \(No space left on device\)"):
        atomic_write(path, fail_midway)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["t.bin"]


def test_an_interrupted_write_leaves_the_previous_file_whole_and_no_rest(tmp_path: Path) -> None:
    def interrupt(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "t.bin"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, interrupt)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["t.bin"]


def test_a_bad_row_leaves_the_previous_table_whole(tmp_path: Path) -> None:
    path, rows = tmp_path / "c.parquet", candidate_rows(3)
    write_table(rows, CANDIDATES, path)
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_table([rows[0] | {"sample_index": "first"}], CANDIDATES, path)
    assert read_table(tmp_path, CANDIDATES) == rows


def test_an_unwritable_place_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        atomic_write_text(tmp_path / "file" / "deep.txt", "x")


def test_writers_replace_whole_files_and_make_folders(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.json"
    atomic_write_json(path, {"a": 1, "path": Path("b")})
    atomic_write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert path.stat().st_mode & 0o777 == 0o644
    atomic_torch_save({"a": 1}, tmp_path / "s.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "s.pt"]
