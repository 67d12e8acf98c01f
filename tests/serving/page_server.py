"""A server of the page in a thread, and requests to it as bytes."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
from medmambase.serving import server  # after it is known to be there
from medmambase.serving.application import KIND  # the same

MOST = 1  # MB of an image
FACTS = {"name": "läuf", "classes": ["cyst", "<b>solid</script>"], "calibrated": True, "maps": True, "points": [],
         "multi_label": False, "false_alarms": 0.05, "coverage": None}  # fmt: skip  # one line would be too long
PATIENCE = 60.0  # seconds, on a machine that is busy


class Said:
    """In the place of a network: it says how many bytes it was given, and remembers the order."""

    def __init__(self) -> None:
        self.chosen = False
        self.order: list[bytes] = []
        self.let = threading.Event()
        self.let.set()
        self.busy, self.most_busy = 0, 0
        self.waiting: Callable[[], int] = lambda: 0

    def facts(self) -> dict[str, Any]:
        return dict(FACTS)

    def answer(self, content: bytes) -> dict[str, Any]:
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        assert self.let.wait(PATIENCE)
        self.order.append(content[:16])
        self.busy -= 1
        return {"problem": f"{len(content)} bytes"}


@contextmanager
def running(answers: Said, names: frozenset[str] | None = None) -> Iterator[int]:
    """The port of a server of ``answers``."""
    listening = server.listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    with server.served(answers, MOST, names, listening) as found:  # type: ignore[arg-type]  # it answers as Answers does
        answers.waiting = lambda: len(found.predict.waiting)
        yield port
    assert not found.thread.is_alive()


def ask(
    port: int, method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of the answer to one request; ``_`` in a header's name is a dash."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode("utf-8")
    finally:
        connection.close()


def predict(port: int, body: bytes, path: str = "/predict", **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and answer for an image, sent as the page sends it."""
    given = {"content_type": KIND, "origin": f"http://127.0.0.1:{port}"} | headers
    status, _, text = ask(port, "POST", path, body, **{name: value for name, value in given.items() if value})
    return status, json.loads(text)


def begun(port: int, head: str, body: bytes = b"") -> socket.socket:
    """A connection on which a request was sent, of which nobody has read the answer."""
    found = socket.create_connection(("127.0.0.1", port), PATIENCE)
    lines = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {KIND}\r\n{head}\r\n\r\n"
    found.sendall(lines.encode("ascii") + body)
    return found


def ended(connection: socket.socket) -> tuple[int, str]:
    """Status and text of the answer on a connection, which is then closed."""
    with connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read().decode("utf-8")


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    clock = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        if true():
            return
        clock.wait(0.01)
    raise AssertionError("it never came")
