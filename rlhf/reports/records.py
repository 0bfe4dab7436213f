"""Typed records and their JSON files: a record is written as its fields and read back with every field checked."""

import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from rlhf.errors import UserError

T = TypeVar("T")
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""Float field whose NaN is null in JSON."""


def parse_record(kind: type[T], values: Any, path: Path, remedy: str) -> T:
    """Builds a record of type `kind` from the JSON values of a file; keys that `kind` does not know are ignored.

    Raises UserError with the file and the remedy if a field is missing or of another type.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{path}: damaged ({_first_fault(error)}); {remedy}") from error


def dump_record(record: Any) -> Any:
    """Returns a record, or a collection of records, as JSON values; NaN stays a float."""
    return to_jsonable_python(record)


def read_record(kind: type[T], path: Path, remedy: str) -> T:
    """Reads the record in a JSON file. Raises UserError with the remedy if it is missing, damaged or lacks a field."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: not readable, or damaged ({_first_fault(error)}); {remedy}") from error
    except OSError as error:
        raise UserError(f"{path}: not readable, or damaged ({error}); {remedy}") from error


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
