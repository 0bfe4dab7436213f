"""Serves the annotation page over HTTP, and the requests that its script makes."""

import secrets
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import Body, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from rlhf.data.agreement import measure_agreement, measure_consistency
from rlhf.data.annotation.export import export_annotations, to_annotation
from rlhf.data.annotation.items import AnnotationItems
from rlhf.data.annotation.store import AnnotationStore, Task, TaskRefused
from rlhf.errors import UserError
from serve.api.api_errors import ApiError, answer_api_error, answer_http_error, answer_invalid_form
from serve.api.guard import Guard, Rules

COOKIE = "prefpaint_token"
RULES = Rules(body_bytes=1_000_000, json_items=60_000)
STATIC = FilePath(__file__).parents[1] / "static"

Mark = Annotated[float, Field(ge=0, le=7, multiple_of=0.5, allow_inf_nan=False, strict=True)]
Key = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


def _to_name(value: str) -> str:
    # Keyboards differ in how they write a letter with an accent.
    name = unicodedata.normalize("NFC", " ".join(value.split()))
    if not name or len(name) > 60 or not name.isprintable():
        raise ValueError("give a name of 1 to 60 printable characters")
    return name


@dataclass(frozen=True)
class Page:
    """A kind of judging page, and its export."""

    template: str
    file: str
    """Name of the exported file."""
    export: Callable[[AnnotationStore, FilePath], int]
    """Writes the judgements into a folder and returns their number."""


SCORES = Page("annotate.html", "annotations.parquet", export_annotations)
"""The page on which people score candidates."""


class Person(BaseModel):
    """The sender of a request."""

    model_config = ConfigDict(extra="forbid")

    annotator: Annotated[str, Field(max_length=200), AfterValidator(_to_name)]


class PictureMarks(BaseModel):
    """A person's marks of one picture, in steps of one half."""

    model_config = ConfigDict(extra="forbid")

    position: Annotated[int, Field(ge=0, lt=10_000, strict=True)]
    structure: Mark
    texture: Mark
    overall: Mark


def build_page(
    store: AnnotationStore,
    items: AnnotationItems,
    out: FilePath,
    token: str | None,
    kind: Page = SCORES,
    rules: Rules = RULES,
) -> FastAPI:
    """Returns the application. If there is a token, every request must bring it. On shutdown it exports to `out`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        _export_at_the_end(store, out, kind)

    page = FastAPI(title="prefpaint-ray annotation", lifespan=lifespan, docs_url=None, redoc_url=None)
    page.exception_handler(ApiError)(answer_api_error)
    page.exception_handler(RequestValidationError)(answer_invalid_form)
    page.exception_handler(HTTPException)(answer_http_error)
    page.exception_handler(TaskRefused)(_answer_refusal)
    page.exception_handler(SQLAlchemyError)(_answer_database_failure)
    page.mount("/static", StaticFiles(directory=STATIC), name="static")
    _add_page(page, store, kind)
    _add_requests(page, store)
    _add_pictures(page, store, items)
    _add_results(page, store, out, kind)
    if token is not None:
        page.middleware("http")(_token_check(token))
    page.add_middleware(Guard, rules=rules)
    return page


def _export_at_the_end(store: AnnotationStore, out: FilePath, kind: Page) -> None:
    try:
        count = kind.export(store, out)
    except (UserError, SQLAlchemyError) as error:
        print(f"error: {error}\nthe judgements are in the database; remove the cause, then run --export")
        return
    print(f"{count} judgements in {out / kind.file}" if count else "no judgements yet", flush=True)


def _answer_refusal(request: Request, error: TaskRefused) -> JSONResponse:
    status = {"unknown_task": 404, "out_of_range": 400}.get(error.code, 409)
    return answer_api_error(request, ApiError(str(error), code=error.code, status=status))


def _answer_database_failure(request: Request, error: SQLAlchemyError) -> JSONResponse:
    message = "the database does not answer; what was stored is safe, try again in a moment"
    return answer_api_error(request, ApiError(message, code="database_unavailable", status=503))


def _token_check(token: str) -> Callable[..., Awaitable[Response]]:
    """Returns middleware that accepts the token once in the page's address, then in a cookie, or as a bearer."""

    def is_token(value: str) -> bool:
        return secrets.compare_digest(value.encode(errors="replace"), token.encode())

    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Admits requests with the token; a token in the page's address becomes a cookie."""
        if request.url.path == "/" and is_token(request.query_params.get("token", "")):
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="lax", max_age=30 * 86400)
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if is_token(request.cookies.get(COOKIE, "")) or is_token(bearer):
            return await call_next(request)
        message = "open the whole address that `rlhf annotate` printed; it ends in ?token=..."
        return answer_api_error(request, ApiError(message, code="token_missing", status=401))

    return check


def _add_page(page: FastAPI, store: AnnotationStore, kind: Page) -> None:
    templates = Environment(
        loader=PackageLoader("serve", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = templates.get_template(kind.template).render(lease_s=store.assignment.lease_s)

    @page.get("/", response_class=HTMLResponse)
    def show_page() -> HTMLResponse:
        return HTMLResponse(html, headers={"cache-control": "no-store", "referrer-policy": "no-referrer"})


def _view(store: AnnotationStore, annotator: str) -> dict[str, Any]:
    """Returns what the page shows next: the task if there is one, and everyone's progress."""
    task = store.next_task(annotator)
    return {
        "task": None if task is None else _describe(task),
        "progress": store.progress(annotator),
        "consistency": measure_consistency(store.rows(annotator)),
    }


def _describe(task: Task) -> dict[str, Any]:
    """Returns a task without the names of its prompt and samples."""
    marks = [{"position": position, **values} for position, values in sorted(task.marks.items())]
    return {"key": task.key, "pictures": len(task.sample_order), "marks": marks}


def _add_requests(page: FastAPI, store: AnnotationStore) -> None:
    @page.post("/api/next")
    def next_task(person: Person) -> dict[str, Any]:
        return _view(store, person.annotator)

    @page.post("/api/undo")
    def undo(person: Person) -> dict[str, Any]:
        store.undo(person.annotator)
        return _view(store, person.annotator)

    @page.put("/api/tasks/{key}/marks")
    def save(key: Key, marks: Annotated[list[PictureMarks], Body(embed=True, max_length=10_000)]) -> dict[str, Any]:
        store.save_marks(key, {m.position: m.model_dump(exclude={"position"}) for m in marks})
        return {"stored": len(marks)}

    @page.post("/api/tasks/{key}/renew")
    def renew(key: Key) -> dict[str, Any]:
        store.renew(key)
        return {"lease_s": store.assignment.lease_s}

    @page.post("/api/tasks/{key}/finish")
    def finish(key: Key) -> dict[str, Any]:
        return _view(store, store.finish(key))

    @page.post("/api/tasks/{key}/skip")
    def skip(key: Key) -> dict[str, Any]:
        return _view(store, store.skip(key))


def _add_pictures(page: FastAPI, store: AnnotationStore, items: AnnotationItems) -> None:
    @page.get("/api/tasks/{key}/masked.png")
    def masked(key: Key) -> Response:
        return _png(items.masked[store.task(key).prompt_id])

    @page.get("/api/tasks/{key}/pictures/{position}.png")
    def picture(key: Key, position: int) -> Response:
        task = store.task(key)
        if not 0 <= position < len(task.sample_order):
            raise ApiError(f"picture {position} is not among {len(task.sample_order)}", code="out_of_range", status=404)
        return _png(items.candidates[task.prompt_id][task.sample_order[position]])


def _png(data: bytes) -> Response:
    headers = {"cache-control": "private, max-age=3600, immutable", "x-content-type-options": "nosniff"}
    return Response(data, media_type="image/png", headers=headers)


def _add_results(page: FastAPI, store: AnnotationStore, out: FilePath, kind: Page) -> None:
    @page.get("/agreement")
    def agreement() -> dict[str, Any]:
        return dict(measure_agreement(map(to_annotation, store.rows())))

    @page.post("/api/export")
    def export() -> dict[str, Any]:
        try:
            count = kind.export(store, out)
        except UserError as error:
            raise ApiError(str(error), code="not_written", status=507) from error
        if not count:
            raise ApiError("there are no judgements yet", code="no_judgements", status=409)
        return {"judgements": count, "file": str(out / kind.file)}
