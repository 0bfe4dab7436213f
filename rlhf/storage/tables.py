"""Parquet tables that stages exchange: schemas, writing, and checked reading."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_path, check_schema
from rlhf.storage.columns import MAY_BE_EMPTY, ColumnError, decode_columns
from rlhf.storage.url_path import UrlPath, explained

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("image", IMAGE),
        ("mask", IMAGE),
        ("hole", pa.string()),
        ("source", pa.string()),
        ("photograph", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
    ]
)
CANDIDATES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("seed", pa.int64()),
        ("image", IMAGE),
        ("policy_version", pa.int32()),
        ("num_inference_steps", pa.int32()),
        ("eta", pa.float32()),
        ("first_step", pa.int32()),
    ]
)
ANNOTATIONS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("annotator", pa.string()),
        ("annotated_at", pa.timestamp("us", tz="UTC")),
        ("structure", pa.float32()),
        ("texture", pa.float32()),
        ("overall", pa.float32()),
        ("is_simulated", pa.bool_()),
    ]
)
MARKS = ("structure", "texture", "overall")
"""Columns with a person's marks, each 0-7."""
PAGE_ANNOTATIONS = ANNOTATIONS.append(pa.field("round", pa.int32()))
"""Table that the annotation page exports; round 1 is a prompt shown to the same person a second time."""
EVALUATION = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("photograph", pa.string()),
        ("hole", pa.string()),
        ("policy", pa.string()),
        ("image", IMAGE),
        ("reward", pa.float32()),
        ("uncertainty", pa.float32()),
        ("gold", pa.float32()),
        ("sharpness", pa.float32()),
    ]
)
CURVE = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("photograph", pa.string()),
        ("policy_version", pa.int32()),
        ("reward", pa.float32()),
        ("gold", pa.float32()),
    ]
)
"""Judgements of every saved policy of a run; version 0 is the base model."""


SCHEMA_VERSION = 1
SCHEMA_KEY = "prefpaint_schema_version"
"""Key of the schema version in the file's metadata."""
ROWS_PER_GROUP = 1000
PICTURES_PER_GROUP = 16
"""Rows per row group: the unit of memory in writing and streaming, and of random reads."""


def rows_per_group(schema: pa.Schema) -> int:
    """Returns the number of rows per group, small for tables with pictures."""
    return PICTURES_PER_GROUP if any(pa.types.is_struct(field.type) for field in schema) else ROWS_PER_GROUP


def write_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Writes rows as zstd Parquet, atomically; image columns carry Hugging Face's metadata."""
    with open_table(schema, path) as append:
        for row in rows:
            append(row)


@contextmanager
def open_table(schema: pa.Schema, path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields a function that appends a row to a table; row groups are written one at a time.

    The file appears at `path` at the end of the block. If the block raises, a previous file stays unchanged.
    """
    full = schema.with_metadata(_hub_metadata(schema) | {SCHEMA_KEY: str(SCHEMA_VERSION)})
    pending: list[Mapping[str, Any]] = []
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, full, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(pending, schema=full))
            pending.clear()

        def append(row: Mapping[str, Any]) -> None:
            pending.append(row)
            if len(pending) == rows_per_group(schema):
                flush()

        yield append
        if pending:
            flush()


def _hub_metadata(schema: pa.Schema) -> dict[str, str]:
    features = {f.name: _hub_feature(f.type) for f in schema}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def _hub_feature(kind: pa.DataType) -> dict[str, str]:
    if kind == IMAGE:
        return {"_type": "Image"}
    name = {"float": "float32", "timestamp[us, tz=UTC]": "timestamp[us, tz=UTC]"}.get(str(kind), str(kind))
    return {"dtype": name, "_type": "Value"}


def read_table(
    folder: Path,
    schema: pa.Schema,
    *,
    optional: tuple[str, ...] = (),
    may_be_empty: Collection[str] = MAY_BE_EMPTY,
) -> list[dict[str, Any]]:
    """Reads all rows of the Parquet files in a folder (or of one file), in the order of file names.

    A file may lack the `optional` columns of the schema; its rows then hold None. Raises UserError with file and column
    if a file is unreadable, another column is missing or of another type, a cell is empty outside the columns
    `may_be_empty`, or there are no rows.
    """
    return list(stream_table(folder, schema, optional=optional, may_be_empty=may_be_empty))


def stream_table(
    folder: Path,
    schema: pa.Schema,
    *,
    optional: tuple[str, ...] = (),
    may_be_empty: Collection[str] = MAY_BE_EMPTY,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of `read_table` with one row group in memory; raises the same errors."""
    is_empty, first = True, None
    for path in list_files(folder):
        with open_parquet(path) as file:
            check_layout(path, file.schema_arrow, schema, first=first, optional=optional)
            first = first or (path, file.schema_arrow)
            for row in _stream_rows(file, schema, may_be_empty):
                is_empty = False
                yield row
    if is_empty:
        raise UserError(f"{folder}: holds no rows")


def list_files(folder: Path) -> list[Path]:
    """Returns the files of a table in the order of their names, or one file. Raises UserError if there are none."""
    paths = [folder] if folder.is_file() else sorted(folder.glob("*.parquet"))
    if not paths:
        raise UserError(f"{folder}: no Parquet files there; run the stage that writes them first")
    return paths


def check_layout(
    path: Path,
    found: pa.Schema,
    schema: pa.Schema,
    *,
    first: tuple[Path, pa.Schema] | None,
    optional: Collection[str] = (),
) -> None:
    """Raises UserError if a file lacks a column that is not optional, or disagrees with the `first` file beside it."""
    missing = [name for name in schema.names if name not in found.names and name not in optional]
    if missing:
        beside = set(missing) & set(first[1].names) if first is not None else ()
        remedy = f"; {first[0].name} beside it holds it: write both by one version" if first and beside else ""
        raise UserError(f"{path}: column {', '.join(missing)} missing; expected {', '.join(schema.names)}{remedy}")
    if first is not None and _version_of(found) != _version_of(first[1]):
        raise UserError(
            f"{path}: has schema {_version_of(found)}, and {first[0].name} beside it schema {_version_of(first[1])}; "
            "the files of a table must be of one version: write the older ones again"
        )


def _version_of(found: pa.Schema) -> int:
    return int((found.metadata or {}).get(SCHEMA_KEY.encode(), 1))


def _stream_rows(file: pq.ParquetFile, schema: pa.Schema, may_be_empty: Collection[str]) -> Iterator[dict[str, Any]]:
    present = pa.schema([field for field in schema if field.name in file.schema_arrow.names])
    absent, first = {name: None for name in schema.names if name not in present.names}, 0
    for batch in file.iter_batches(rows_per_group(schema), columns=present.names):
        read = pa.Table.from_batches([batch])
        rows = decode_columns(read, present, first_row=first, may_be_empty=may_be_empty).to_pylist()
        first += len(rows)
        yield from (row | absent for row in rows)


@contextmanager
def open_parquet(path: Path, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file, whose footer may be known. Raises UserError with its name if reading fails in the block."""
    try:
        with explained(path), parquet_file(path, metadata) as file:
            check_schema(_version_of(file.schema_arrow), SCHEMA_VERSION, path)
            yield file
    except ColumnError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UserError(f"{path}: not a Parquet file of this kind ({error}); write it again") from error


def parquet_file(path: Path, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Opens a Parquet file, local or at a URL, and reads only the requested parts."""
    is_remote = isinstance(path, UrlPath)
    return pq.ParquetFile(path.open("rb") if is_remote else path, metadata=metadata, pre_buffer=is_remote)


def count_rows(path: Path) -> int:
    """Returns the number of rows of a Parquet file from its footer."""
    with open_parquet(path) as file:
        return file.metadata.num_rows


class ImageCell(TypedDict):
    """A value of an image column."""

    bytes: bytes
    """Encoded picture."""
    path: str


def image_cell(data: bytes, path: str) -> ImageCell:
    """Returns a value of an image column."""
    return {"bytes": data, "path": path}
