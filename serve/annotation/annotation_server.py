"""Starting the annotation page: its address, its token, and its end."""

import os
import secrets
import signal
import socket
from pathlib import Path

import uvicorn

from rlhf.data.annotation_items import AnnotationItems
from rlhf.data.annotation_store import AnnotationStore
from rlhf.errors import UserError
from serve.annotation.annotation_page import SCORES, Page, build_page
from serve.api.admission import is_loopback

TOKEN_VARIABLE = "PREFPAINT_TOKEN"


def run(store: AnnotationStore, items: AnnotationItems, out: Path, host: str, port: int, kind: Page = SCORES) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then export what was judged to `out`.

    Raises UserError where the address cannot be listened on.
    """
    token = choose_token(host)
    listener = listen(host, port)
    page = build_page(store, items, out, token, kind)
    server = uvicorn.Server(uvicorn.Config(page, log_level="warning", access_log=False))
    address = page_address(host, listener.getsockname()[1], token)
    # uvicorn passes the signal on once it has stopped; the caller still has something to say then.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"Judge {len(store.assignment.order)} prompts at {address} until Ctrl-C", flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        listener.close()
        store.database.close()


def choose_token(host: str) -> str | None:
    """The token of the environment; a new one where other machines can reach `host`; else None."""
    given = os.environ.get(TOKEN_VARIABLE)
    if given:
        return given
    return None if is_loopback(host) else secrets.token_urlsafe(16)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; UserError where the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"{host}:{port}: cannot be listened on ({error}); choose another --host or --port") from error
    return listener


def page_address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser; for all addresses at once, this machine's name."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
