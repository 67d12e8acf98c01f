"""The command that serves the page: where it listens, what it says, and how it ends."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
import torch  # after it is known that there is something to test

from medmambase import MedMambaSE, ModelConfig, Preprocessing  # the same
from medmambase.commands import serve, serve_flags  # the same
from medmambase.serving import server  # the same
from medmambase.training.interrupt import Terminated  # the same


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("läufe") / "läuf 1"
    config = ModelConfig(dims=(8, 16), depths=(1, 1), in_chans=1, num_classes=2)
    network = MedMambaSE(config, classes=("a", "b"), preprocessing=Preprocessing(size=16, channels=1))
    network.save(folder / "best")
    return folder


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 0), (Terminated(signal.SIGTERM), 143)])
def test_it_says_where_it_is_and_ends_quietly(
    error: BaseException, code: int, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ports: list[int] = []
    opened: list[str] = []

    class Waited:
        def is_alive(self) -> bool:
            raise error

    @contextmanager
    def served(answers: object, most: int, names: object, listening: socket.socket) -> Iterator[server.Served]:
        with listening:
            ports.append(listening.getsockname()[1])
            assert (most, names) == (serve_flags.MOST, None)
            yield server.Served(Waited(), None)  # type: ignore[arg-type]  # what ends it

    monkeypatch.setattr(server, "served", served)
    monkeypatch.setattr(serve.webbrowser, "open", opened.append)
    assert serve.main([str(run), "--device", "cpu", "--port", "0", "--open"]) == code
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"läuf 1 is served on http://127.0.0.1:{ports[0]}/ until Ctrl-C"
    assert opened == [f"http://127.0.0.1:{ports[0]}/"] and "Traceback" not in err
    assert out.splitlines()[1:] == ([] if code else ["stopped"])


def test_an_address_that_others_reach_must_be_meant(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[object] = []

    @contextmanager
    def served(answers: object, most: int, names: object, listening: socket.socket) -> Iterator[server.Served]:
        with listening:
            found.append(names)
            yield server.Served(threading.Thread(), None)  # type: ignore[arg-type]  # nothing is served

    monkeypatch.setattr(server, "served", served)  # first of all: were it let through, it would be served for ever
    assert serve.main([str(run), "--device", "cpu", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "add --allow-network if that is meant" in capsys.readouterr().err and not found
    assert serve.main([str(run), "--device", "cpu", "--host", "0.0.0.0", "--port", "0", "--allow-network"]) == 0
    out = capsys.readouterr().out
    assert "is not encrypted" in out and re.match(rf"läuf 1 is served on http://{socket.gethostname()}:\d+/ until", out)
    name = socket.gethostname().lower()
    assert found == [{name, f"{name}.local", socket.getfqdn().lower()}]


def test_a_port_that_is_taken_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert serve.main([str(run), "--device", "cpu", "--port", str(port)]) == 2
    assert re.fullmatch(
        rf"medmambase-serve: --host 127.0.0.1 --port {port} cannot be listened on \(.+\); give another --port, .*\n",
        capsys.readouterr().err,
    )


def test_without_the_extra_it_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("medmambase.serving.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["medmambase.serving"], "server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve.main([str(run)]) == 2
    assert 'uvicorn, which is not installed: pip install "medmambase[serve]"' in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_a_port_is_a_number(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve_flags.parse(["run", f"--port={port}"])
    assert ended.value.code == 2 and "is not a whole number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no Ctrl-C to one process alone")
@pytest.mark.usefixtures("ctrl_c")  # or a process that inherits SIGINT ignored would go on for ever
def test_ctrl_c_ends_the_process_quietly(run: Path) -> None:
    words = [sys.executable, "-m", "medmambase.commands.serve", str(run), "--device", "cpu", "--port", "0"]
    process = subprocess.Popen(
        words, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip  # one argument list
    with process:
        assert process.stdout and process.stderr
        found = re.search(r":(\d+)/", process.stdout.readline())
        assert found
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().read()  # it is kept open, as a browser does
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
            connection.close()
        assert process.stdout.read() == "stopped\n"
        assert process.stderr.read() == ""
