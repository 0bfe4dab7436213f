"""Tasks of annotators: assigns, judges, closes and undoes tasks, each in one transaction.

A task is a prompt with all its candidates, leased to one person; an abandoned lease expires and the task goes to
another person. A judgement counts as soon as its three marks are stored, even in an open task,
unless the task is skipped.
"""

import math
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa

from rlhf.data.annotation.database import AnnotationDatabase, judgements, tasks
from rlhf.data.rows import JudgementRow
from rlhf.errors import UserError
from rlhf.storage.tables import MARKS

REPEAT_GAP = 5
"""Number of prompts between a prompt and its repeat, while new prompts remain."""
MAX_MARK = 7.0

Marks = Mapping[str, float]
"""Marks for structure, texture and overall, each 0-7."""


class TaskRefused(Exception):  # noqa: N818 - a refusal is an answer, not a fault of the program
    """A request that conflicts with the state of its task."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        """`unknown_task`, `lease_expired`, `task_closed`, `incomplete`, `out_of_range` or `nothing_to_undo`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prompt as shown to one person."""

    key: str
    prompt_id: str
    sample_order: tuple[int, ...]
    """Sample index at each position on the page."""
    marks: dict[int, dict[str, float]]
    """Stored marks by position."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Rules for assigning prompts to people."""

    order: tuple[str, ...]
    """All prompts, in the order of assignment."""
    overlap: int = 1
    """Number of people who judge each prompt."""
    repeat: float = 0.05
    """Share of a person's prompts shown to them a second time."""
    lease_s: float = 600.0
    """Seconds until an idle task expires; every stored mark renews the lease."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError if a value is out of range."""
        if self.overlap < 1 or not 0 <= self.repeat <= 1 or not 0 < self.lease_s < 1e9:
            raise UserError("annotate: needs --overlap of 1 or more, --repeat within 0-1 and --lease-minutes above 0")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of one person, and of everyone together."""

    judged: int
    """Number of prompts that the person has judged."""
    skipped: int
    """Number of prompts that the person has skipped."""
    done: int
    """Number of judgements of prompts by everyone."""
    needed: int
    """Number of judgements that are needed: each prompt counts `overlap` times."""


class AnnotationStore:
    """The tasks and judgements of one set of candidates; safe to call from many threads and processes."""

    def __init__(
        self,
        database: AnnotationDatabase,
        samples: Mapping[str, list[int]],
        assignment: Assignment,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`samples` holds the sample indices of every prompt; `clock` returns Unix seconds."""
        self.database = database
        self.samples = samples
        self.assignment = assignment
        self.clock = clock

    def next_task(self, annotator: str) -> Task | None:
        """Returns the person's open task, a due repeat, or the next prompt that needs judges; None if all is judged.

        An open task with an expired lease returns to the person unless others have taken the prompt.
        """
        with self.database.transaction() as connection:
            own = connection.execute(
                sa.select(tasks).where(tasks.c.annotator == annotator).order_by(tasks.c.id)
            ).fetchall()
            taken = self._taken(connection, annotator)
            for row in own:
                if row.state == "open" and (row.round or self._is_free(row.prompt_id, taken)):
                    connection.execute(tasks.update().where(tasks.c.id == row.id).values(leased_until=self._lease()))
                    return self._read(connection, row)
            seen = {row.prompt_id for row in own}
            new = next((p for p in self.assignment.order if p not in seen and self._is_free(p, taken)), None)
            repeat = self._repeat_due(annotator, own, is_last=new is None)
            if repeat is not None:
                return self._open(connection, annotator, repeat, 1)
            return None if new is None else self._open(connection, annotator, new, 0)

    def task(self, key: str) -> Task:
        """Returns a task by its key, in any state. Raises TaskRefused if it is unknown."""
        with self.database.transaction() as connection:
            return self._read(connection, self._find(connection, key))

    def save_marks(self, key: str, marks: Mapping[int, Marks]) -> None:
        """Stores the marks of candidates, by position on the page, and renews the lease.

        Raises TaskRefused if the task is unknown, closed or expired, or if a position or mark is out of range.
        """
        for position, values in marks.items():
            for name in MARKS:
                if not 0 <= values[name] <= MAX_MARK:
                    raise TaskRefused("out_of_range", f"{name} of picture {position} is {values[name]}, not within 0-7")
        with self.database.transaction() as connection:
            row = self._find_open(connection, key)
            for position, values in marks.items():
                if not 0 <= position < len(row.sample_order):
                    raise TaskRefused("out_of_range", f"picture {position} is not among {len(row.sample_order)}")
                self._put(connection, row.id, row.sample_order[position], values)
            connection.execute(tasks.update().where(tasks.c.id == row.id).values(leased_until=self._lease()))

    def renew(self, key: str) -> None:
        """Renews the lease. Raises TaskRefused like `save_marks`."""
        self.save_marks(key, {})

    def finish(self, key: str) -> str:
        """Closes a task; returns its annotator. Raises TaskRefused if a candidate lacks marks, or like `save_marks`."""
        with self.database.transaction() as connection:
            row = self._find_open(connection, key)
            missing = len(row.sample_order) - len(self._read(connection, row).marks)
            if missing:
                raise TaskRefused("incomplete", f"{missing} pictures are not scored yet; score them or skip the prompt")
            return self._close(connection, row, "done")

    def skip(self, key: str) -> str:
        """Closes a task without judgement; returns its annotator. Its marks do not count; the prompt goes to others.

        Raises TaskRefused like `save_marks`.
        """
        with self.database.transaction() as connection:
            return self._close(connection, self._find_open(connection, key), "skipped")

    def undo(self, annotator: str) -> None:
        """Reopens the person's last closed task, with its marks.

        Skips tasks whose prompt others have taken after a skip. Raises TaskRefused if there is none.
        """
        with self.database.transaction() as connection:
            closed = connection.execute(
                sa.select(tasks)
                .where(tasks.c.annotator == annotator, tasks.c.state != "open")
                .order_by(tasks.c.closed_at.desc(), tasks.c.id.desc())
            ).fetchall()
            taken = self._taken(connection, annotator)
            for row in closed:
                if row.state == "done" or row.round or self._is_free(row.prompt_id, taken):
                    again = {"state": "open", "closed_at": None, "leased_until": self._lease()}
                    connection.execute(tasks.update().where(tasks.c.id == row.id).values(again))
                    return
        raise TaskRefused("nothing_to_undo", "there is nothing to undo")

    def progress(self, annotator: str | None = None) -> Progress:
        """Counts what the person has done, and what everyone has."""
        counted = sa.select(tasks.c.prompt_id, sa.func.count().label("people"))
        firsts = counted.where(tasks.c.round == 0, tasks.c.state == "done").group_by(tasks.c.prompt_id)
        own = sa.select(tasks.c.state, sa.func.count().label("tasks")).where(tasks.c.annotator == annotator)
        with self.database.transaction() as connection:
            people = {row.prompt_id: row.people for row in connection.execute(firsts)}
            states = {row.state: row.tasks for row in connection.execute(own.group_by(tasks.c.state))}
        overlap = self.assignment.overlap
        return Progress(
            judged=states.get("done", 0),
            skipped=states.get("skipped", 0),
            done=sum(min(people.get(p, 0), overlap) for p in self.assignment.order),
            needed=overlap * len(self.assignment.order),
        )

    def rows(self, annotator: str | None = None) -> list[JudgementRow]:
        """Returns judgements of everyone or of one person, oldest first, without skipped tasks."""
        columns = (tasks.c.prompt_id, tasks.c.annotator, tasks.c.round)
        marks = (judgements.c.sample_index, judgements.c.judged_at, *(judgements.c[name] for name in MARKS))
        query = sa.select(*columns, *marks).join(tasks).where(tasks.c.state != "skipped")
        if annotator is not None:
            query = query.where(tasks.c.annotator == annotator)
        with self.database.transaction() as connection:
            found = connection.execute(query.order_by(judgements.c.id)).mappings()
            return [cast(JudgementRow, dict(row)) for row in found]

    def _lease(self) -> float:
        return self.clock() + self.assignment.lease_s

    def _taken(self, connection: sa.Connection, annotator: str) -> dict[str, int]:
        """Counts the other people who have judged or leased each prompt."""
        is_held = sa.or_(tasks.c.state == "done", sa.and_(tasks.c.state == "open", tasks.c.leased_until > self.clock()))
        query = sa.select(tasks.c.prompt_id, sa.func.count().label("people")).group_by(tasks.c.prompt_id)
        found = connection.execute(query.where(tasks.c.round == 0, tasks.c.annotator != annotator, is_held))
        return {row.prompt_id: row.people for row in found}

    def _is_free(self, prompt_id: str, taken: Mapping[str, int]) -> bool:
        return taken.get(prompt_id, 0) < self.assignment.overlap

    def _repeat_due(self, annotator: str, own: Sequence[Any], *, is_last: bool) -> str | None:
        """Returns a prompt to repeat, judged a while ago, if the person has had too few repeats."""
        firsts = [row.prompt_id for row in own if row.round == 0 and row.state == "done"]
        repeated = {row.prompt_id for row in own if row.round == 1}
        wanted = math.floor(self.assignment.repeat * len(firsts) + 0.5)
        gap = 1 if is_last else REPEAT_GAP
        eligible = [p for p in firsts[:-gap] if p not in repeated]
        if not eligible or len(repeated) >= wanted:
            return None
        return random.Random(f"{self.assignment.seed} {annotator} {len(repeated)}").choice(eligible)

    def _open(self, connection: sa.Connection, annotator: str, prompt_id: str, round_: int) -> Task:
        values = {
            "key": uuid.uuid4().hex,
            "prompt_id": prompt_id,
            "annotator": annotator,
            "round": round_,
            "sample_order": random.sample(self.samples[prompt_id], len(self.samples[prompt_id])),
            "state": "open",
            "leased_until": self._lease(),
        }
        connection.execute(tasks.insert().values(values))
        return self._read(connection, self._find(connection, str(values["key"])))

    def _read(self, connection: sa.Connection, row: Any) -> Task:
        stored = connection.execute(sa.select(judgements).where(judgements.c.task_id == row.id)).mappings()
        marks = {row.sample_order.index(j["sample_index"]): {name: j[name] for name in MARKS} for j in stored}
        return Task(key=row.key, prompt_id=row.prompt_id, sample_order=tuple(row.sample_order), marks=marks)

    def _find(self, connection: sa.Connection, key: str) -> Any:
        row = connection.execute(sa.select(tasks).where(tasks.c.key == key)).one_or_none()
        if row is None:
            raise TaskRefused("unknown_task", f"there is no task {key}; ask for the next one")
        return row

    def _find_open(self, connection: sa.Connection, key: str) -> Any:
        row = self._find(connection, key)
        if row.state != "open":
            raise TaskRefused("task_closed", f"this task is {row.state}; undo it to change it")
        if row.leased_until <= self.clock():
            raise TaskRefused("lease_expired", "this task waited too long and may be another's now; ask for the next")
        return row

    def _put(self, connection: sa.Connection, task_id: int, sample_index: int, marks: Marks) -> None:
        values = {name: float(marks[name]) for name in MARKS} | {"judged_at": self.clock()}
        is_it = sa.and_(judgements.c.task_id == task_id, judgements.c.sample_index == sample_index)
        if connection.execute(judgements.update().where(is_it).values(values)).rowcount == 0:
            connection.execute(judgements.insert().values(task_id=task_id, sample_index=sample_index, **values))

    def _close(self, connection: sa.Connection, row: Any, state: str) -> str:
        closed = {"state": state, "closed_at": self.clock()}
        connection.execute(tasks.update().where(tasks.c.id == row.id).values(closed))
        return row.annotator
