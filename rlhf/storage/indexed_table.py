"""A table of any length, opened by some of its columns; its pictures are read when they are asked for.

Opening reads the files' footers and those columns. A picture is read with the row group that holds it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.errors import UserError
from rlhf.storage.columns import decode_columns
from rlhf.storage.tables import check_layout, list_files, open_parquet

READERS = 8
"""Files that are opened at once; opening is mostly waiting, above all for URLs."""
KEPT_GROUPS = 8
"""Row groups with pictures that stay in memory, those of the rows read last."""


@dataclass(frozen=True, kw_only=True)
class _OpenedFile:
    path: Path
    metadata: pq.FileMetaData
    layout: pa.Schema
    small: pa.Table
    """Decoded columns that the table is opened by."""
    groups_with_gaps: list[int]
    """Numbers of the row groups in which a picture is missing, as the footer counts them."""


@dataclass(frozen=True, kw_only=True)
class _RowGroup:
    path: Path
    metadata: pq.FileMetaData
    number: int
    """Number within the file."""
    first_in_file: int
    """Place of its first row within the file."""


class IndexedTable:
    """Rows of the Parquet files in a folder (or of one file), in the order of `read_table`."""

    columns: pa.Table
    """Columns of all rows that the table was opened by."""

    def __init__(self, folder: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
        """Opens the table by `columns`. Raises the errors of `read_table`, those of other columns' cells when taken."""
        self._schema = schema
        self._small = pa.schema([schema.field(name) for name in columns])
        first, *others = list_files(folder)
        files = [self._open(first, None)]
        with ThreadPoolExecutor(READERS) as pool:
            files += pool.map(lambda path: self._open(path, files[0]), others)
        self.columns = pa.concat_tables(file.small for file in files)
        if not len(self.columns):
            raise UserError(f"{folder}: holds no rows")
        self._groups = [group for file in files for group in _list_groups(file)]
        self._starts = [0]
        for group in self._groups:
            self._starts.append(self._starts[-1] + group.metadata.row_group(group.number).num_rows)
        self._recent: dict[tuple[int, tuple[str, ...]], pa.Table] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.columns)

    def take(self, places: Sequence[int], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Returns the rows at `places`, in this order, with some columns or, by default, all of the schema."""
        names = tuple(columns) or tuple(self._schema.names)
        of_group: dict[int, list[int]] = {}
        for place in sorted(set(places)):
            of_group.setdefault(bisect_right(self._starts, place) - 1, []).append(place)
        found: dict[int, dict[str, Any]] = {}
        for number, inside in of_group.items():
            rows = self._read(number, names).take([place - self._starts[number] for place in inside]).to_pylist()
            found |= dict(zip(inside, rows, strict=True))
        return [found[place] for place in places]

    def _open(self, path: Path, first: _OpenedFile | None) -> _OpenedFile:
        with open_parquet(path) as file:
            layout = file.schema_arrow
            check_layout(path, layout, self._schema, first=None if first is None else (first.path, first.layout))
            decode_columns(layout.empty_table(), self._schema, first_row=0)  # Refuses pictures of another kind.
            small = decode_columns(file.read(self._small.names, use_threads=False), self._small, first_row=0)
            opened = _OpenedFile(
                path=path,
                metadata=file.metadata,
                layout=layout,
                small=small,
                groups_with_gaps=list(_find_gaps(file, self._schema)),
            )
        groups = list(_list_groups(opened))
        for number in opened.groups_with_gaps:
            self._decode(groups[number], tuple(self._schema.names))  # Raises with the row.
        return opened

    def _read(self, number: int, names: tuple[str, ...]) -> pa.Table:
        """Returns decoded columns of a row group; those read last stay in memory. Threads read one after another."""
        with self._lock:
            table = self._recent.pop((number, names), None)
            if table is None:
                table = self._decode(self._groups[number], names)
            self._recent[number, names] = table
            while len(self._recent) > KEPT_GROUPS:
                self._recent.pop(next(iter(self._recent)))
            return table

    def _decode(self, group: _RowGroup, names: tuple[str, ...]) -> pa.Table:
        with open_parquet(group.path, group.metadata) as file:
            # Errors name a row by its prompt.
            read = file.read_row_group(group.number, list({*names, "prompt_id"}), use_threads=False)
            schema = pa.schema([self._schema.field(name) for name in names])
            return decode_columns(read, schema, first_row=group.first_in_file)


def _list_groups(file: _OpenedFile) -> Iterator[_RowGroup]:
    first = 0
    for number in range(file.metadata.num_row_groups):
        yield _RowGroup(path=file.path, metadata=file.metadata, number=number, first_in_file=first)
        first += file.metadata.row_group(number).num_rows


def _find_gaps(file: pq.ParquetFile, schema: pa.Schema) -> Iterator[int]:
    """Yields the row groups whose footer counts empty cells in a column of pictures."""
    pictures = [field.name for field in schema if pa.types.is_struct(field.type)]
    wanted = {*pictures, *(f"{name}.bytes" for name in pictures)}
    leaves = [i for i in range(file.metadata.num_columns) if file.schema.column(i).path in wanted]
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        counts = [group.column(leaf).statistics for leaf in leaves]
        if any(found is not None and found.has_null_count and found.null_count for found in counts):
            yield number
