"""Exports the annotation page's database to the tables that the reward stage reads."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from rlhf.data.agreement import write_agreement
from rlhf.data.annotation.database import AnnotationDatabase, sqlite_url
from rlhf.data.annotation.items import AnnotationItems
from rlhf.data.annotation.store import AnnotationStore, Assignment
from rlhf.data.rows import AnnotationRow, JudgementRow
from rlhf.errors import UserError
from rlhf.storage.tables import PAGE_ANNOTATIONS, parquet_file, write_table

DATABASE_FILE = "annotations.db"


def export_annotations(store: AnnotationStore, out: Path) -> int:
    """Writes all judgements to `out/annotations.parquet` and their agreement to `out/agreement.json`.

    Returns the number of rows; writes nothing if it is 0.
    """
    rows = [to_annotation(judgement) for judgement in store.rows()]
    if not rows:
        return 0
    write_table(rows, PAGE_ANNOTATIONS, out / "annotations.parquet")
    write_agreement(rows, out)
    return len(rows)


def to_annotation(row: JudgementRow) -> AnnotationRow:
    """Returns marks of the annotation page as a row of the table of annotations."""
    return {
        "prompt_id": row["prompt_id"],
        "sample_index": row["sample_index"],
        "annotator": row["annotator"],
        "annotated_at": datetime.fromtimestamp(row["judged_at"], UTC),
        "structure": row["structure"],
        "texture": row["texture"],
        "overall": row["overall"],
        "is_simulated": False,
        "round": row["round"],
    }


def open_study(items: AnnotationItems, assignment: Assignment, out: Path, database: str | None) -> AnnotationStore:
    """Opens the store of these candidates, in `database` or else in `out/annotations.db`.

    Raises UserError if the database cannot be opened or belongs to other candidates, or if `out` holds annotations that
    an export would overwrite.
    """
    refuse_foreign_annotations(out)
    opened = AnnotationDatabase(database or sqlite_url(out / DATABASE_FILE), items.fingerprint)
    return AnnotationStore(opened, {name: sorted(samples) for name, samples in items.candidates.items()}, assignment)


def export_by_hand(items: AnnotationItems, out: Path, database: str | None) -> int:
    """Exports without a server; returns the number of judgements. Raises UserError if there are none."""
    if database is None and not (out / DATABASE_FILE).is_file():
        raise UserError(f"{out}: no {DATABASE_FILE} there; name the folder that was annotated into, or --database")
    store = open_study(items, Assignment(order=tuple(items.prompt_ids)), out, database)
    count = export_annotations(store, out)
    store.database.close()
    if not count:
        raise UserError(f"{store.database.name}: holds no judgements yet; start the page without --export")
    return count


def refuse_foreign_annotations(out: Path) -> None:
    """Raises UserError if `out` holds annotations that no page exported, which an export would overwrite."""
    path = out / "annotations.parquet"
    if not path.is_file():
        return
    try:
        with parquet_file(path) as file:
            is_ours = "round" in file.schema_arrow.names
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: not a Parquet file ({error}); remove it or choose another --out") from error
    if not is_ours:
        raise UserError(f"{path}: holds annotations from elsewhere (simulated ones?); choose another --out")


def refuse_peoples_annotations(out: Path) -> None:
    """Raises UserError if `out` holds people's judgements, which simulated ones would overwrite."""
    path = out / "annotations.parquet"
    is_peoples = (out / DATABASE_FILE).exists()
    if path.is_file() and not is_peoples:
        with parquet_file(path) as file:
            is_peoples = "round" in file.schema_arrow.names
    if is_peoples:
        raise UserError(f"{out}: holds people's annotations; choose another --out for simulated ones")
