"""The database of the annotation page: SQLite by default, or any database that SQLAlchemy opens.

Commits reach the disk (SQLite: write-ahead log, full synchronisation), so an acknowledged judgement survives a crash.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from rlhf.errors import UserError
from rlhf.storage.url_path import UrlPath

metadata = sa.MetaData()

study = sa.Table(
    "study",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
)
"""One row with the fingerprint of the candidates. Its lock serialises all transactions on tasks."""

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(32), nullable=False, unique=True),
    sa.Column("prompt_id", sa.Text, nullable=False, index=True),
    sa.Column("annotator", sa.Text, nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("sample_order", sa.JSON, nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("leased_until", sa.Double, nullable=False),
    sa.Column("closed_at", sa.Double, nullable=True),
    sa.UniqueConstraint("prompt_id", "annotator", "round"),
)
"""A prompt assigned to a person; round 1 is the repeat. `state` is open, done or skipped; times are Unix seconds."""

judgements = sa.Table(
    "judgements",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("task_id", sa.ForeignKey("tasks.id"), nullable=False),
    sa.Column("sample_index", sa.Integer, nullable=False),
    sa.Column("structure", sa.Double, nullable=False),
    sa.Column("texture", sa.Double, nullable=False),
    sa.Column("overall", sa.Double, nullable=False),
    sa.Column("judged_at", sa.Double, nullable=False),
    sa.UniqueConstraint("task_id", "sample_index"),
)
"""A person's three marks of a candidate."""


class AnnotationDatabase:
    """An open database for one set of candidates."""

    def __init__(self, url: str | sa.URL, fingerprint: str) -> None:
        """Opens or creates the database.

        Raises UserError if it cannot be opened, or belongs to other candidates.
        """
        self.engine = _create_engine(url)
        self.name = self.engine.url.render_as_string(hide_password=True)
        try:
            metadata.create_all(self.engine)
            found = self._claim(fingerprint)
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise UserError(f"{self.name}: cannot be opened as a database ({reason}); check --database") from error
        if found != fingerprint:
            raise UserError(
                f"{self.name}: holds judgements of other candidates or prompts; name theirs, or choose another --out "
                "or --database"
            )

    def _claim(self, fingerprint: str) -> str:
        """Returns the fingerprint in the database; the first process to open it stores its own."""
        try:
            with self.engine.begin() as connection:
                found = connection.scalar(sa.select(study.c.fingerprint))
                if found is None:
                    connection.execute(study.insert().values(id=1, fingerprint=fingerprint))
        except IntegrityError:  # Another server was first.
            with self.engine.begin() as connection:
                found = connection.scalar(sa.select(study.c.fingerprint))
        return found or fingerprint

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Yields a transaction, exclusive across processes; commits at its end, rolls back on an exception."""
        with self.engine.begin() as connection:
            # SQLite took its write lock when the transaction began; other databases lock this row.
            connection.execute(sa.select(study.c.id).with_for_update())
            yield connection

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def sqlite_url(path: Path) -> sa.URL:
    """Returns the address of a SQLite file. Raises UserError if `path` is a URL, where SQLite cannot write."""
    if isinstance(path, UrlPath):
        raise UserError(
            f"{path}: people's marks are kept in SQLite, which needs a local --out; with --database "
            "postgresql://... the table is exported to a URL"
        )
    return sa.URL.create("sqlite", database=str(path.resolve()))


def _create_engine(url: str | sa.URL) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = sa.create_engine(parsed, pool_size=20, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--database: {error.name} is missing; install it (for PostgreSQL: pip install 'psycopg[binary]')"
        ) from error
    except (ArgumentError, TypeError) as error:
        raise UserError(f"--database: {error}; give an address such as postgresql://user@host/name") from error
    if engine.dialect.name == "sqlite":
        _make_folder(engine.url.database)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _make_folder(path: str | None) -> None:
    if not path or path == ":memory:":
        raise UserError("--database: SQLite in memory would lose the judgements; name a file")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out or --database") from error


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    """Sets durability and a lock timeout, and lets SQLAlchemy instead of the driver begin transactions."""
    connection.isolation_level = None
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
