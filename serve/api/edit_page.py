"""The pages of the inpainting service: the editor at `/`, the description of the interface at `/docs`."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from serve.api.decoder import MAX_PICTURE_PX
from serve.api.edit_request import MAX_EXPAND_PX
from serve.api.upload import MAX_UPLOAD_BYTES

STATIC = Path(__file__).parents[1] / "static"
CONTENT_POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; frame-ancestors 'none'"
"""Content security policy: scripts and styles from this service only, none inline; images also from memory."""
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}
FILES = (
    "annotate.css",
    "docs.css",
    "edit.css",
    "edit.js",
    "edit_api.js",
    "edit_mask.js",
    "edit_picture.js",
    "edit_results.js",
    "edit_stage.js",
    "edit_strokes.js",
    "edit_waiting.js",
)


def add_page(api: FastAPI) -> None:
    """Adds `GET /`, `GET /docs` and the files under `/static/` that they load; none needs a key.

    The files are read once, here, and travel with the application, since the package may be
    installed elsewhere on other machines of the cluster.
    """
    html = _render(
        "edit.html", max_upload_bytes=MAX_UPLOAD_BYTES, max_pixels=MAX_PICTURE_PX, max_expand_px=MAX_EXPAND_PX
    )
    files = {name: (STATIC / name).read_bytes() for name in FILES}
    always = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

    pages = {"content-security-policy": CONTENT_POLICY, "cache-control": "no-store", **always}

    @api.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(html, headers=pages)

    @api.get("/docs", include_in_schema=False)
    async def show_interface(http: Request) -> HTMLResponse:
        # FastAPI's own page loads scripts from the internet, which clusters often cannot reach.
        return HTMLResponse(_render("docs.html", document=http.app.openapi()), headers=pages)

    @api.get("/static/{name}", include_in_schema=False)
    async def send_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        headers = {"cache-control": "no-cache", **always}
        return Response(files[name], media_type=MEDIA_TYPES[name[name.rindex(".") :]], headers=headers)


def _render(template: str, **values: Any) -> str:
    templates = Environment(
        loader=PackageLoader("serve", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return templates.get_template(template).render(values)
