"""Listen on an address of this machine, and serve the page there."""

import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from threading import Thread
from typing import Any

import uvicorn
from jinja2 import Environment, StrictUndefined

from medmambase.evaluation.report.template import text
from medmambase.serving.answers import Answers
from medmambase.serving.application import Predict, application

MEGABYTE = 2**20
_BACKLOG = 128  # connections that the system holds until they are taken


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 is any that is free. Raises OSError."""
    (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # on Windows two servers could share a port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # elsewhere a port that was left a moment ago would be taken
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
    except OSError:
        found.close()
        raise
    return found


def address_of(listening: socket.socket) -> str:
    """Return the address of a socket as a browser takes it: with this machine's name where it
    listens on all of its addresses."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@dataclass(frozen=True)
class Served:
    """A server under way, in ``thread``; ``predict`` answers its images."""

    thread: Thread
    predict: Predict


@contextmanager
def served(answers: Answers, most: int, names: Collection[str] | None, listening: socket.socket) -> Iterator[Served]:
    """Serve the page of a network on a socket, in another thread: signals stay those of this one.
    In the end whatever still waits for an answer is refused.

    ``most``: MB of an image. ``names``: as ``foreign_host`` takes them.
    """
    facts = answers.facts() | {"most": most, "local": names is None, "chosen": answers.chosen}

    def page(nonce: str) -> str:
        return _page(facts, nonce)

    predict = Predict(answers.answer, most * MEGABYTE)
    app = application(page, predict, names)
    # No loggers are set up, no addresses are logged, and HTTP is read by h11 wherever this runs.
    config = uvicorn.Config(
        app, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, log_level="error",
        access_log=False, server_header=False, proxy_headers=False,
    )  # fmt: skip  # one argument list
    found = uvicorn.Server(config)
    thread = Thread(target=found.run, kwargs={"sockets": [listening]}, name="serve")
    thread.start()
    try:
        yield Served(thread, predict)
    finally:
        found.should_exit = True
        predict.end()
        thread.join()
        predict.worker.shutdown()


def _page(facts: dict[str, Any], nonce: str) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    here = files(__package__)
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    template = environment.from_string((here / "page.html.jinja").read_text(encoding="utf-8"))
    return template.render(facts, facts=facts, nonce=nonce, style=text("report.css") + style, script=script)
