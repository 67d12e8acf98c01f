"""The page's server: what it refuses, in which order it answers, and what it tells the browser."""

import re
import threading
import time
from collections.abc import Iterator

import pytest
from page_server import MOST, Said, ask, begun, ended, predict, running, until

from medmambase.serving import application, server

MEGABYTE = server.MEGABYTE


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def port(said: Said) -> Iterator[int]:
    with running(said) as found:
        yield found


def test_the_page_refers_to_nothing_outside_and_its_script_has_a_new_nonce_each_time(port: int) -> None:
    nonces = set()
    for _ in range(2):
        status, headers, page = ask(port)
        assert status == 200 and "set-cookie" not in headers
        policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        (nonce,) = re.findall(r"^'nonce-(.+)'$", policy["script-src"])
        assert policy["style-src"] == policy["script-src"] and policy["img-src"] == "blob: data:"
        assert set(re.findall(r"<(?:script|style)( [^>]*)?>", page)) == {
            f' nonce="{nonce}"',
            ' type="application/json" id="facts"',
        }
        assert not re.search(r"\s(on\w+|style)=", page)  # which no nonce would let through
        assert set(re.findall(r"""(?:src|href)=["']([^"']*)""", page)) == {"data:,"}
        assert not re.search(r"https?://|//\w+\.\w+|@import|url\(", page)
        assert "läuf" in page and "&lt;b&gt;solid" in page and "<b>" not in page
        nonces.add(nonce)
    assert len(nonces) == 2
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_an_image_is_answered_with_or_without_a_browser(port: int, said: Said) -> None:
    assert predict(port, b"x" * 99) == (200, {"problem": "99 bytes"})
    assert predict(port, b"y", origin="") == (200, {"problem": "1 bytes"})
    assert predict(port, b"") == (200, {"problem": "0 bytes"})
    assert said.order == [b"x" * 16, b"y", b""]


def test_another_port_of_a_tunnel_is_this_server_too(port: int) -> None:
    assert predict(port, b"x", host="localhost:9000", origin="http://localhost:9000")[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.7", ""],
)
def test_a_foreign_host_is_refused(host: str, port: int, said: Said) -> None:
    for method in ("GET", "POST"):
        status, headers, text = ask(port, method, "/", b"x", host=host.format(port=port))
        assert status == 403 and "which is not this server" in text and "content-security-policy" in headers
    assert not said.order


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}", "http://localhost:{port}"],
)
def test_an_image_from_a_page_of_another_origin_is_refused(origin: str, port: int, said: Said) -> None:
    status, answer = predict(port, b"x", origin=origin.format(port=port))
    assert status == 403 and "not from that of this server" in answer["problem"] and not said.order


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_what_a_form_can_send_is_refused(kind: str, port: int, said: Said) -> None:
    status, answer = predict(port, b"x", content_type=kind, origin="")
    assert status == 415 and "application/octet-stream" in answer["problem"] and not said.order


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/predict?name=../../etc/passwd", 400),
        ("/predict/../../etc/passwd", 404),
        ("/predict/%2e%2e/%2e%2e/etc/passwd", 404),
        ("/..\\..\\windows\\win.ini", 404),
        ("/etc/passwd", 404),
    ],
)
def test_a_name_is_never_the_path_of_a_file(path: str, status: int, port: int, said: Said) -> None:
    assert predict(port, b"x", path)[0] == status
    assert ask(port, "GET", path)[0] in (404, 405) and not said.order


def test_an_image_that_says_it_is_too_large_is_refused_before_it_comes(port: int, said: Said) -> None:
    status, text = ended(begun(port, f"Content-Length: {2**30}"))  # of which not one byte is sent
    assert status == 413 and f"more than {MOST} MB" in text and not said.order
    for length in ("-1", "many"):
        assert ended(begun(port, f"Content-Length: {length}"))[0] in (400, 413)
    assert predict(port, bytes(MOST * MEGABYTE))[0] == 200


def test_an_image_that_turns_out_too_large_is_refused_while_it_comes(port: int, said: Said) -> None:
    part = b"10000\r\n" + bytes(2**16) + b"\r\n"
    connection = begun(port, "Transfer-Encoding: chunked")
    sent = 0
    try:
        while sent < 2**30:  # or the server would have taken it all
            connection.sendall(part)
            sent += 2**16
    except OSError:
        pass  # it has closed the connection
    assert MOST * MEGABYTE <= sent < 64 * MEGABYTE and not said.order
    connection.close()
    assert predict(port, b"x")[0] == 200


def test_forty_at_once_are_answered_one_at_a_time_in_the_order_in_which_they_came(port: int, said: Said) -> None:
    said.let.clear()
    waiting = []
    for number in range(40):
        waiting.append(begun(port, "Content-Length: 2", b"%02d" % number))
        until(lambda: said.waiting() == len(waiting))  # else the system might hand on the next one first
    assert ask(port)[0] == 200  # the page does not wait for them
    said.let.set()
    assert {ended(one) for one in waiting} == {(200, '{"problem":"2 bytes"}')}
    assert said.order == [b"%02d" % number for number in range(40)] and said.most_busy == 1


def test_too_many_that_wait_are_told_to_come_again(port: int, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "MOST_WAITING", 2)
    said.let.clear()
    waiting = [begun(port, "Content-Length: 1", b"x") for _ in range(2)]
    until(lambda: said.waiting() == 2)
    status, answer = predict(port, b"y")
    assert status == 503 and "2 images wait already" in answer["problem"]
    said.let.set()
    assert [ended(one)[0] for one in waiting] == [200, 200]
    assert predict(port, b"z")[0] == 200


def test_who_leaves_or_stalls_keeps_nobody_waiting(port: int, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "PATIENCE", 0.2)
    begun(port, "Content-Length: 9", b"left").close()
    stalled = begun(port, "Content-Length: 9", b"half")
    assert predict(port, b"x") == (200, {"problem": "1 bytes"})
    status, text = ended(stalled)
    assert status == 408 and "send it again" in text and said.order == [b"x"]


def test_an_image_is_only_read_when_its_turn_has_come(port: int, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "PATIENCE", 0.1)
    said.let.clear()
    first = begun(port, "Content-Length: 1", b"x")
    until(lambda: said.waiting() == 1)
    stalled = begun(port, "Content-Length: 9", b"half")
    until(lambda: said.waiting() == 2)
    time.sleep(0.5)
    assert said.waiting() == 2  # nobody has waited for it in vain yet
    said.let.set()
    assert (ended(first)[0], ended(stalled)[0]) == (200, 408)


def test_what_waits_at_the_end_is_refused_at_once_and_nothing_is_printed(
    said: Said, capfd: pytest.CaptureFixture[str]
) -> None:
    said.let.clear()
    with running(said) as port:
        waiting = [begun(port, "Content-Length: 1", b"x") for _ in range(3)] + [
            begun(port, "Content-Length: 9", b"half")
        ]
        until(lambda: said.waiting() == 4)
        threading.Timer(0.5, said.let.set).start()  # the first is in work, and is not waited for before the others
    assert [ended(one)[0] for one in waiting] == [503] * 4
    assert capfd.readouterr() == ("", "")


def test_what_memory_does_not_hold_is_one_line_and_the_next_is_answered(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: bytes) -> dict[str, object]:
        raise MemoryError

    answer = said.answer
    monkeypatch.setattr(said, "answer", lambda content: full(content) if content == b"x" else answer(content))
    with running(said) as port:
        status, told = predict(port, b"x")
        assert status == 507 and "not enough memory" in told["problem"]
        assert predict(port, b"y")[0] == 200


def test_a_server_of_a_network_answers_to_addresses_and_to_its_own_name(said: Said) -> None:
    with running(said, frozenset({"ward-7"})) as port:
        for host, right in (
            ("192.168.1.7:8765", 200),
            ("WARD-7:8765", 200),
            ("[fe80::1]:8765", 200),
            ("evil.example", 403),
        ):
            assert ask(port, host=host)[0] == right
        assert "unencrypted" in ask(port)[2]
