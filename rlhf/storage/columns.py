"""Columns of tables that other programs wrote: decoded by what they say of themselves, or refused; never cast.

A column may say the same in another way: as a dictionary, with wider offsets, in another number of bits, as labels that
Hugging Face's metadata name. Text that looks like a number is no number, and the other way round.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

MAY_BE_EMPTY = frozenset(
    {
        "caption",
        "seed",
        "policy_version",
        "num_inference_steps",
        "eta",
        "first_step",
        "annotated_at",
        "round",
        "preferred",
    }
)
"""Columns whose cells may be empty: nothing is known there, or a person saw no difference."""
NAMES_OF_PEOPLE = ("annotator",)
"""Columns that are compared in Unicode's form NFC, since keyboards differ in how they write a letter with an accent."""


class ColumnError(Exception):
    """A column cannot be read; the message completes "FILE: "."""


class _WrongKindError(Exception):
    """What a column holds is of another kind; the message completes "column NAME "."""


def decode_columns(
    table: pa.Table, schema: pa.Schema, *, first_row: int, may_be_empty: Collection[str] = MAY_BE_EMPTY
) -> pa.Table:
    """Returns the columns of `schema` in its order and types; `first_row` is the place of the first row in its file.

    Raises ColumnError with the column, and with the row of an empty cell.
    """
    labels = _read_labels(table.schema)
    columns = []
    for field in schema:
        name = field.name
        if table.column_names.count(name) > 1:
            raise ColumnError(f"column {name} is there twice; remove one")
        column = table[name].combine_chunks()
        try:
            decoded = _decode(column, field.type, labels.get(name, {}))
        except (_WrongKindError, pa.ArrowInvalid) as error:
            raise ColumnError(f"column {name} {error}; write it as {field.type}") from error
        if name not in may_be_empty and (empty := _first_empty(decoded)) is not None:
            prompt = f" (prompt {table['prompt_id'][empty]})" if "prompt_id" in table.column_names else ""
            raise ColumnError(f"row {first_row + empty}{prompt}: {name} is empty; fill it in, or remove the row")
        columns.append(pc.utf8_normalize(decoded, form="NFC") if name in NAMES_OF_PEOPLE else decoded)
    return pa.table(columns, schema=schema)


def _read_labels(schema: pa.Schema) -> dict[str, Mapping[str, Any]]:
    """Returns Hugging Face's features by column; none if the file has no such metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _decode(column: pa.Array, wanted: pa.DataType, feature: Mapping[str, Any]) -> pa.Array:
    found = column.type
    if types.is_null(found):
        return pa.nulls(len(column), wanted)
    if types.is_dictionary(found):
        return _decode(column.dictionary_decode(), wanted, feature)
    if types.is_struct(wanted):
        return _decode_image(column, wanted, feature)
    if types.is_string(wanted) and types.is_integer(found) and feature.get("_type") == "ClassLabel":
        return _name_labels(column, feature.get("names"))
    if not _says_the_same(found, wanted):
        zone = ", without a time zone" if types.is_timestamp(found) else ""
        raise _WrongKindError(f"holds {found}{zone}")
    # Times are kept to the microsecond; other numbers must fit.
    return column.cast(wanted, safe=not types.is_timestamp(wanted))


def _says_the_same(found: pa.DataType, wanted: pa.DataType) -> bool:
    if types.is_string(wanted):
        return types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
    if types.is_binary(wanted):
        return types.is_binary(found) or types.is_large_binary(found) or types.is_binary_view(found)
    if types.is_integer(wanted):
        return types.is_integer(found)
    if types.is_floating(wanted):
        return types.is_floating(found) or types.is_integer(found)
    if types.is_timestamp(wanted):
        return types.is_timestamp(found) and found.tz is not None
    return found == wanted


def _decode_image(column: pa.Array, wanted: pa.DataType, feature: Mapping[str, Any]) -> pa.Array:
    """Decodes pictures as Hugging Face stores them: a struct of bytes and path, or bytes that are declared an image."""
    if types.is_struct(column.type) and "bytes" in column.type.names:
        # `flatten` carries the struct's own empty cells over to its fields.
        parts = dict(zip(column.type.names, column.flatten(), strict=True))
    elif feature.get("_type") == "Image":
        parts = {"bytes": column}
    else:
        raise _WrongKindError(f"holds {column.type}")
    fields = [_decode(parts.get(field.name, pa.nulls(len(column))), field.type, {}) for field in wanted]
    return pa.StructArray.from_arrays(fields, fields=list(wanted), mask=fields[0].is_null())


def _name_labels(column: pa.Array, names: object) -> pa.Array:
    """Returns the names of Hugging Face's class labels; -1 is an empty cell there."""
    if not isinstance(names, list):
        raise _WrongKindError("holds class labels without names")
    known = pc.if_else(pc.equal(column, -1), None, column).cast(pa.int64())
    if any(label not in range(len(names)) for label in known.unique().drop_null().to_pylist()):
        raise _WrongKindError(f"holds class labels beyond its {len(names)} names")
    return pa.array([str(name) for name in names], pa.string()).take(known)


def _first_empty(column: pa.Array) -> int | None:
    """Returns the place of the first cell that holds nothing, or an empty text."""
    is_empty = column.is_null()
    if types.is_string(column.type):
        is_empty = pc.or_(is_empty, pc.fill_null(pc.equal(column, ""), False))
    place = pc.index(is_empty, True).as_py()
    return None if place < 0 else place
