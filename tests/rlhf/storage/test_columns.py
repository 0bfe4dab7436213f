"""Columns that other programs wrote: decoded by what they say of themselves, or refused by name; never cast."""

import json
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_parts import small_prompts, write_prompts

from rlhf.data.annotators import load_annotations
from rlhf.data.normalisation import load_normalisation, measure_normalisation
from rlhf.data.prompts import PromptTable, load_prompts
from rlhf.errors import UserError
from rlhf.evaluation.blind_choices import BLIND_CHOICES
from rlhf.storage.indexed_table import IndexedTable
from rlhf.storage.tables import ANNOTATIONS, CANDIDATES, PROMPTS, image_cell, read_table, write_table
from serve.annotation.annotation_page import Person

TIME = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def annotations(count: int = 4, **changes: Any) -> pa.Table:
    """Rows of one prompt; `changes` replace columns."""
    row = {"prompt_id": "p", "annotator": "ann", "annotated_at": TIME, "is_simulated": False}
    marks = dict.fromkeys(("structure", "texture", "overall"), 3.0)
    table = pa.Table.from_pylist([row | marks | {"sample_index": i} for i in range(count)], schema=ANNOTATIONS)
    for name, column in changes.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def read(table: pa.Table, folder: Path, schema: pa.Schema = ANNOTATIONS) -> list[dict[str, Any]]:
    pq.write_table(table, folder / "t.parquet")
    rows = read_table(folder, schema)
    assert IndexedTable(folder, schema, ("prompt_id",)).take([2, 0]) == [rows[2], rows[0]], (
        "both ways to read decode alike"
    )
    return rows


TEXT = ["a", "b", "a", "c"]


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("annotator", pa.array(TEXT).dictionary_encode(), TEXT),
        ("annotator", pa.array(TEXT, pa.large_string()), TEXT),
        ("annotator", pa.array(TEXT, pa.large_string()).dictionary_encode(), TEXT),
        ("sample_index", pa.array([0, 1, 2, 300], pa.int64()), [0, 1, 2, 300]),
        ("sample_index", pa.array([0, 1, 2, 3], pa.uint8()), [0, 1, 2, 3]),
        ("sample_index", pa.array([7, 8, 7, 8]).dictionary_encode(), [7, 8, 7, 8]),
        ("overall", pa.array([1.5, 2, 3, 4], pa.float64()), [1.5, 2.0, 3.0, 4.0]),
        ("overall", pa.array([1.5, 2, 3, 4], pa.float16()), [1.5, 2.0, 3.0, 4.0]),
        ("overall", pa.array([1, 2, 3, 4], pa.int64()), [1.0, 2.0, 3.0, 4.0]),
        ("annotated_at", pa.array([TIME] * 4, pa.timestamp("ns", "UTC")), [TIME] * 4),
        ("annotated_at", pa.array([TIME] * 4, pa.timestamp("us", "Europe/Berlin")), [TIME] * 4),
        ("annotated_at", pa.array([1] * 4, pa.timestamp("s", "UTC")), [datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)] * 4),
        ("annotated_at", pa.array([1_001] * 4, pa.timestamp("ns", "UTC")), [datetime(1970, 1, 1, 0, 0, 0, 1, UTC)] * 4),
        ("annotated_at", pa.nulls(4), [None] * 4),
    ],
)
def test_what_says_the_same_in_another_way_is_decoded(
    tmp_path: Path, name: str, column: pa.Array, expected: list
) -> None:
    assert [row[name] for row in read(annotations(**{name: column}), tmp_path)] == expected


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("annotator", pa.array([1, 2, 3, 4]), "holds int64; write it as string"),
        ("annotator", pa.array([b"a"] * 4), "holds binary; write it as string"),
        ("annotator", pa.array([["a"]] * 4), "holds list<.*string>; write it as string"),
        ("annotator", pa.array([{"name": "a"}] * 4), "holds struct<name: string>"),
        ("annotator", pa.array([1, 2, 3, 4]).dictionary_encode(), "holds int64"),
        ("sample_index", pa.array(["0", "1", "2", "3"]), "holds string; write it as int32"),
        ("sample_index", pa.array(["0", "1", "2", "3"]).dictionary_encode(), "holds string"),
        ("sample_index", pa.array([0.0, 1.0, 2.0, 3.0]), "holds double"),
        ("sample_index", pa.array([True] * 4), "holds bool"),
        ("sample_index", pa.array([2**40] * 4), "not in range"),
        ("overall", pa.array(["1", "2", "3", "4"]), "holds string; write it as float"),
        ("overall", pa.array([True] * 4), "holds bool"),
        ("overall", pa.array([1, 2, 3, 4], pa.decimal128(3)), "holds decimal128"),
        ("is_simulated", pa.array([0, 1, 0, 1]), "holds int64; write it as bool"),
        ("is_simulated", pa.array(["true"] * 4), "holds string"),
        ("annotated_at", pa.array([TIME.replace(tzinfo=None)] * 4), "without a time zone"),
        ("annotated_at", pa.array([TIME.date()] * 4), "holds date32"),
        ("annotated_at", pa.array([3] * 4), "holds int64"),
        ("annotated_at", pa.array(["2026-01-02"] * 4), "holds string"),
    ],
)
def test_a_column_of_another_kind_is_refused_by_name_and_type(
    tmp_path: Path, name: str, column: pa.Array, said: str
) -> None:
    with pytest.raises(UserError, match=rf"t\.parquet: column {name} .*{said}"):
        read(annotations(**{name: column}), tmp_path)


def labelled(column: pa.Array, feature: dict) -> pa.Table:
    table = annotations(annotator=column)
    record = {"info": {"features": {"annotator": feature}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(record)})


def test_class_labels_are_decoded_by_their_own_names(tmp_path: Path) -> None:
    feature = {"names": ["ann", "bob"], "_type": "ClassLabel"}
    rows = read(labelled(pa.array([0, 1, 1, 0]), feature), tmp_path)
    assert [row["annotator"] for row in rows] == ["ann", "bob", "bob", "ann"]
    with pytest.raises(UserError, match=r"row 2 \(prompt p\): annotator is empty"):
        read(labelled(pa.array([0, 1, -1, 0]), feature), tmp_path)
    with pytest.raises(UserError, match="column annotator holds class labels beyond its 2 names"):
        read(labelled(pa.array([0, 1, 2, 0]), feature), tmp_path)
    with pytest.raises(UserError, match="column annotator holds class labels without names"):
        read(labelled(pa.array([0, 1, 1, 0]), {"_type": "ClassLabel"}), tmp_path)
    with pytest.raises(UserError, match="holds int64"):
        read(labelled(pa.array([0, 1, 1, 0]), {"dtype": "int64", "_type": "Value"}), tmp_path)


def candidates(image: pa.Array, feature: dict | None = None) -> pa.Table:
    rows = [dict.fromkeys(CANDIDATES.names) | {"prompt_id": "p", "sample_index": i} for i in range(len(image))]
    table = pa.Table.from_pylist(rows, schema=CANDIDATES)
    record = {"info": {"features": {"image": feature}}}
    return table.set_column(3, "image", image).replace_schema_metadata({"huggingface": json.dumps(record)})


@pytest.mark.parametrize(
    "image",
    [
        pa.array([{"path": None, "bytes": b"x"}] * 3, pa.struct([("path", pa.string()), ("bytes", pa.binary())])),
        pa.array([{"bytes": b"x"}] * 3, pa.struct([("bytes", pa.large_binary())])),
        pa.array([{"bytes": b"x", "path": None, "more": 1}] * 3),
        pa.array([b"x"] * 3),
    ],
)
def test_pictures_are_read_as_hugging_face_stores_them(tmp_path: Path, image: pa.Array) -> None:
    rows = read(candidates(image, {"_type": "Image"}), tmp_path, CANDIDATES)
    assert [row["image"] for row in rows] == [image_cell(b"x", None)] * 3


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (pa.array([b"x"] * 3), "column image holds binary"),
        (pa.array(["x.png"] * 3), "column image holds string"),
        (pa.array([{"bytes": "x", "path": None}] * 3), "column image holds string"),
        (pa.array([{"path": "x.png"}] * 3), "column image holds struct"),
        (
            pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": "x"}, None]),
            r"row 1 \(prompt p\): image is empty",
        ),
        (pa.array([{"bytes": b"x", "path": None}, None, None]), r"row 1 \(prompt p\): image is empty"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, image: pa.Array, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(candidates(image), tmp_path, CANDIDATES)


def filled(schema: pa.Schema) -> dict[str, Any]:
    """A row without an empty cell."""
    makers = {"string": "x", "bool": False, "float": 1.0, "timestamp[us, tz=UTC]": TIME}
    return {f.name: image_cell(b"x", "x") if pa.types.is_struct(f.type) else makers.get(str(f.type), 1) for f in schema}


REQUIRED = {
    "prompts": (PROMPTS, {"prompt_id", "image", "mask", "hole", "source", "photograph", "split"}),
    "candidates": (CANDIDATES, {"prompt_id", "sample_index", "image"}),
    "annotations": (ANNOTATIONS, set(ANNOTATIONS.names) - {"annotated_at"}),
    "preferences": (BLIND_CHOICES, set(BLIND_CHOICES.names) - {"preferred", "annotated_at", "round"}),
}


@pytest.mark.parametrize("kind", REQUIRED)
def test_an_empty_cell_is_refused_by_row_and_column_in_every_table(tmp_path: Path, kind: str) -> None:
    schema, required = REQUIRED[kind]
    for name in schema.names:
        for empty in ({37}, set(range(40))):
            rows = [filled(schema) | ({name: None} if i in empty else {}) for i in range(40)]
            write_table(rows, schema, tmp_path / "t.parquet")
            if name not in required:
                assert read_table(tmp_path, schema) == rows
                continue
            said = rf"t\.parquet: row {min(empty)} \(prompt \w+\): {name} is empty; "
            with pytest.raises(UserError, match=said):
                read_table(tmp_path, schema)
            with pytest.raises(UserError, match=said):
                IndexedTable(tmp_path, schema, ("prompt_id",)).take([min(empty) + 1])


@pytest.mark.parametrize("kind", REQUIRED)
def test_an_empty_text_is_an_empty_cell(tmp_path: Path, kind: str) -> None:
    schema, required = REQUIRED[kind]
    for name in required & {field.name for field in schema if field.type == pa.string()}:
        rows = [filled(schema) | ({name: ""} if i == 3 else {}) for i in range(5)]
        write_table(rows, schema, tmp_path / "t.parquet")
        with pytest.raises(UserError, match=rf"t\.parquet: row 3 .*: {name} is empty; "):
            read_table(tmp_path, schema)


@pytest.mark.parametrize("column", ["prompt_id", "split", "hole", "source", "photograph"])
def test_prompts_with_an_empty_cell_reach_no_stage(tmp_path: Path, column: str) -> None:
    folder = write_prompts(small_prompts(4), tmp_path / "prompts")
    rows = read_table(folder, PROMPTS)
    rows[3][column] = None
    write_table(rows, PROMPTS, folder / "prompts.parquet")
    for load in (load_prompts, PromptTable):
        with pytest.raises(UserError, match=rf"row 3 \(prompt \w+\): {column} is empty"):
            load(folder, split="train")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = annotations()
    pq.write_table(table.append_column("annotator", table["annotator"]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: .*annotator"):
        read_table(tmp_path, ANNOTATIONS)


def test_biases_are_found_by_a_name_however_it_was_typed(tmp_path: Path) -> None:
    composed = "Zoë"
    decomposed = unicodedata.normalize("NFD", composed)
    measured = measure_normalisation(np.eye(4), [("s", "h")] * 4, [decomposed, "ann", decomposed, "ann"])
    measured.save(tmp_path)
    assert load_normalisation(tmp_path).biases.keys() == {composed, "ann"}
    assert Person(annotator=f" {decomposed} ").annotator == composed


def test_one_person_has_one_name_however_it_was_typed(tmp_path: Path) -> None:
    composed = "Zoë Ångström"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    table = annotations(2, annotator=pa.array([composed, decomposed]))
    pq.write_table(table, tmp_path / "t.parquet")
    assert {row["annotator"] for row in load_annotations(tmp_path)} == {composed}
    twice = annotations(2, annotator=pa.array([composed, decomposed]), sample_index=pa.array([0, 0], pa.int32()))
    pq.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="repeats row 0"):
        load_annotations(tmp_path)
