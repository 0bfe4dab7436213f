"""Starts and stops the annotation page, and chooses its address and token."""

import os
import secrets
import signal
import socket
from dataclasses import replace
from pathlib import Path

import uvicorn

from rlhf.data.annotation.items import AnnotationItems
from rlhf.data.annotation.store import AnnotationStore
from rlhf.errors import UserError
from serve.annotation.annotation_page import RULES, SCORES, Page, build_page
from serve.api.guard import is_loopback

TOKEN_VARIABLE = "PREFPAINT_TOKEN"


def run(store: AnnotationStore, items: AnnotationItems, out: Path, host: str, port: int, kind: Page = SCORES) -> None:
    """Serves the page until Ctrl-C or SIGTERM, then exports the judgements to `out`.

    Raises UserError if the address cannot be listened on.
    """
    token = choose_token(host)
    listener = listen(host, port)
    page = build_page(store, items, out, token, kind, replace(RULES, is_own_machine_only=token is None))
    server = uvicorn.Server(uvicorn.Config(page, log_level="warning", access_log=False))
    address = page_address(host, listener.getsockname()[1], token)
    # uvicorn raises the signal again once it has stopped; the caller still prints a line after that.
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
    """Returns the token in the environment, or a new one if other machines can reach `host`, or else None."""
    given = os.environ.get(TOKEN_VARIABLE)
    if given:
        return given
    return None if is_loopback(host) else secrets.token_urlsafe(16)


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket. Raises UserError if the address is taken or not this machine's."""
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
    """Returns the address to open in a browser; it has this machine's name if all addresses are bound."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
