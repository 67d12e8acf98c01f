"""The server's side of the page: it gives the page, and an answer for each image that is sent.

An image is the body of a request, without a name: nothing that a client sends is ever the path of a
file. Requests are answered one at a time, in the order in which they came, and the body of one is
only read when its turn has come: so a single image is in memory, however many wait.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medmambase.serving.origin import foreign_host, foreign_origin

MOST_WAITING = 64  # requests; the page sends one after the other
PATIENCE = 30.0  # seconds without a byte of an image whose turn it is
KIND = "application/octet-stream"  # no form can send it, so a page of others would have to ask first
_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_ENDED = "medmambase-serve has ended"


def application(page: Callable[[str], str], predict: "Predict", names: Collection[str] | None) -> Starlette:
    """Return the ASGI application.

    ``page`` returns the page for a nonce, which its script and style must have. ``names``: as
    ``foreign_host`` takes them.
    """

    def front(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; connect-src 'self'"
        return HTMLResponse(page(nonce), headers={"content-security-policy": f"{_POLICY}; {own}"})

    return Starlette(
        routes=[
            Route("/", front, methods=["GET"]),
            Route("/predict", predict, methods=["POST"]),
        ],
        middleware=[Middleware(_Guarded, names=names)],
        exception_handlers={HTTPException: _refused},
    )


class _Guarded:
    """Let through what comes from our own page, or from no browser; every answer forbids the
    browser what the page does not need."""

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in (_HEADERS | {"content-security-policy": _POLICY}).items():
                    headers.setdefault(name, value)
            await send(message)

        given = Headers(scope=scope)
        wrong = foreign_host(given.getlist("host"), self.names)
        if wrong is None and scope["method"] not in ("GET", "HEAD"):
            wrong = foreign_origin(given.getlist("origin"), given.getlist("host"))
        await (self.app if wrong is None else _problem(403, wrong))(scope, receive, answer)


class Predict:
    """Answer one image after the other.

    ``answer`` returns what is said of a file's content, ready for JSON; it is called in one thread.
    ``most``: bytes of an image.
    """

    def __init__(self, answer: Callable[[bytes], dict[str, Any]], most: int) -> None:
        self.answer, self.most = answer, most
        self.turn = asyncio.Lock()  # who waits gets it in the order in which they came
        self.waiting: set[asyncio.Task[object]] = set()  # and the one whose turn it is
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="answer")
        self.loop: asyncio.AbstractEventLoop | None = None
        self.ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.loop = asyncio.get_running_loop()
        try:
            response: Response = await self._response(Request(scope, receive))
        except HTTPException as error:
            response = _problem(error.status_code, error.detail)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:  # by ``end``; raised again it would be printed
            response = _problem(503, _ENDED)
        await response(scope, receive, send)

    def end(self) -> None:
        """Refuse whatever waits and whatever comes. May be called in any thread."""
        self.ended = True
        with suppress(RuntimeError):  # the loop is closed
            if self.loop is not None:
                self.loop.call_soon_threadsafe(lambda: [task.cancel() for task in self.waiting])

    async def _response(self, request: Request) -> Response:
        self._check(request)
        task = asyncio.current_task()
        assert task is not None
        self.waiting.add(task)
        try:
            async with self.turn:
                content = await self._content(request)
                found = await asyncio.get_running_loop().run_in_executor(self.worker, self.answer, content)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise HTTPException(
                507, "not enough memory for this image; make it smaller, or use --device cpu"
            ) from error
        finally:
            self.waiting.discard(task)
        return JSONResponse(found)

    def _check(self, request: Request) -> None:
        """Raise HTTPException for what need not be read to be refused."""
        if request.url.query:
            raise HTTPException(400, "an image is sent without a name or other words behind the address")
        if request.headers.get("content-type", "") != KIND:
            raise HTTPException(415, f"an image is sent as the body of the request, of the type {KIND}")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.most:
            raise HTTPException(413, self._too_large())
        if self.ended:
            raise HTTPException(503, _ENDED)
        if len(self.waiting) >= MOST_WAITING:
            raise HTTPException(503, f"{MOST_WAITING} images wait already; send this one again when some are answered")

    async def _content(self, request: Request) -> bytes:
        content = bytearray()
        parts = aiter(request.stream())
        while True:
            try:
                content += await asyncio.wait_for(anext(parts), PATIENCE)
            except StopAsyncIteration:
                return bytes(content)
            except TimeoutError as error:
                raise HTTPException(
                    408, f"nothing more of the image has come for {PATIENCE:g} s; send it again"
                ) from error
            if len(content) > self.most:
                raise HTTPException(413, self._too_large())

    def _too_large(self) -> str:
        return f"an image of more than {self.most // 2**20} MB, the limit here; --max-mb of medmambase-serve raises it"


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}")


def _problem(status: int, words: str) -> Response:
    """The connection ends with it: of an image that is refused nothing more is read."""
    return JSONResponse({"problem": words}, status, headers={"connection": "close"})
