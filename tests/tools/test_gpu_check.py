"""tools/kernels/gpu_check.py keeps what it finds, goes on where it stopped, refuses in one sentence
what it cannot do, and writes tables; all that without a GPU. One test runs every part at tiny
sizes on the CPU."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpu_check
import gpu_check_parts
import gpu_check_tables
from gpu_check_parts import PARTS, Part, Setting
from medmambase_kernels.bench.cases import OPERATORS, SIZES
from medmambase_kernels.bench.measure import Row

CPU = torch.device("cpu")


def run(path: Path, *arguments: str) -> int:
    return gpu_check.main(["--json", str(path), "--device", "cpu", "--tiny", *arguments])


def findings(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three parts that are quick: what each call found is listed."""
    calls: list[str] = []

    def find(key: str) -> dict:
        calls.append(key)
        if key == "b2":
            raise RuntimeError("no such kernel")
        return {"said": [key], "exit": 0, "failed": False}

    def part(keys: str, why: str = "") -> Part:
        def all_of(setting: Setting) -> Iterator[tuple[str, Callable[[], dict]]]:
            for key in keys.split():
                yield key, partial(find, key)

        return Part(all_of, lambda setting: why)

    monkeypatch.setattr(
        gpu_check_parts, "PARTS", {"a": part("a1 a2"), "b": part("b1 b2 b3"), "c": part("c1", "there is none")}
    )
    return calls


def test_each_finding_is_kept_and_a_failure_costs_no_other(tmp_path: Path, counted: list[str]) -> None:
    file = tmp_path / "gefunden ü.json"
    assert run(file) == 1
    parts = findings(file)["parts"]
    assert {name: entry["state"] for name, entry in parts.items()} == {"a": "done", "b": "failed", "c": "skipped"}
    assert counted == ["a1", "a2", "b1", "b2", "b3"]
    assert parts["b"]["rows"]["b2"]["note"] == "RuntimeError: no such kernel"
    assert parts["c"]["why"] == "there is none"
    assert file.with_suffix(".md").read_text(encoding="utf-8").startswith("Measured by")
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_a_second_run_finds_again_only_what_failed(tmp_path: Path, counted: list[str]) -> None:
    run(tmp_path / "f.json")
    counted.clear()
    assert run(tmp_path / "f.json") == 1
    assert counted == ["b2"]
    counted.clear()
    run(tmp_path / "f.json", "--again", "--only", "a")
    assert counted == ["a1", "a2"] and list(findings(tmp_path / "f.json")["parts"]) == ["a"]


def test_only_and_skip_choose_the_parts(tmp_path: Path, counted: list[str]) -> None:
    assert run(tmp_path / "f.json", "--only", "a", "b", "--skip", "b") == 0
    assert counted == ["a1", "a2"]


def test_when_the_time_is_up_nothing_new_begins_and_the_next_run_goes_on(
    tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, *[1.0] * 3, *[100.0] * 99])  # the deadline; a1's question, beginning and end; then too late
    monkeypatch.setattr(gpu_check, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert run(tmp_path / "f.json", "--only", "a", "--minutes", "1") == 3
    entry = findings(tmp_path / "f.json")["parts"]["a"]
    assert (list(entry["rows"]), entry["state"], entry["why"]) == (["a1"], "unfinished", "the time was up")
    monkeypatch.undo()


def test_what_was_found_is_there_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed() -> dict:
        raise KeyboardInterrupt

    rows = [("one", lambda: {"said": ["fine"], "failed": False}), ("two", killed)]
    monkeypatch.setattr(gpu_check_parts, "PARTS", {"a": Part(lambda setting: rows, lambda setting: "")})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "f.json")
    entry = findings(tmp_path / "f.json")["parts"]["a"]
    assert list(entry["rows"]) == ["one"] and entry["state"] == "unfinished"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "cpu"], "--device cpu is no NVIDIA GPU that PyTorch can use"),
        (["--device", "cuda:77"], "--device cuda:77 is no NVIDIA GPU that PyTorch can use"),
        (["--table"], "cannot be read"),
        (["--device", "cpu", "--tiny", "--predictions", "absent.json"], "--predictions absent.json cannot be read"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check.main(["--json", str(tmp_path / "none.json"), *arguments]) == 4
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
    assert not (tmp_path / "none.json").exists()


def test_findings_of_other_kernels_are_not_gone_on_with(
    tmp_path: Path, counted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.json"
    run(file, "--only", "a")
    contents = findings(file)
    contents["machine"]["sources"] = "0123"
    file.write_text(json.dumps(contents), encoding="utf-8")
    assert run(file, "--only", "a") == 4
    assert "written with sources 0123" in capsys.readouterr().err
    file.write_text("[]", encoding="utf-8")
    assert run(file) == 4 and "is not a file of this program" in capsys.readouterr().err


def test_every_case_of_a_full_check_has_a_key_of_its_own_and_covers_the_table() -> None:
    setting = Setting(CPU, False, lambda: 1.0)
    keys = [key for key, _ in PARTS["operators"].findings(setting)]
    assert len(set(keys)) == len(keys) == len(OPERATORS) * 2 * len(SIZES) * 4 * 3
    exact = [key for key, _ in PARTS["exact"].findings(setting)]
    assert exact == [f"{name} {dtype}" for name in OPERATORS for dtype in ("float32", "bfloat16", "float16")]
    assert PARTS["races"].hindered(setting) == "compute-sanitizer watches a GPU"


def test_an_operator_that_gives_other_bits_the_second_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(CPU, True, lambda: 1.0)
    rows = dict(PARTS["twice"].findings(setting))
    assert rows["gated_norm float32"]() == {"different": [], "failed": False}
    drawn = gpu_check_parts.bench_cases.operator

    def unsteady(case, device):
        computation = drawn(case, device)
        noise = iter([0.0, 1e-6, 2e-6])
        return SimpleNamespace(
            named=computation.named,
            forward=computation.forward,
            backward=lambda dy: tuple(t + next(noise) if i == 1 else t for i, t in enumerate(computation.backward(dy))),
        )

    monkeypatch.setattr(gpu_check_parts.bench_cases, "operator", unsteady)
    assert rows["gated_norm float32"]() == {"different": ["gradient of y"], "failed": True}


def test_the_tables_put_predicted_and_measured_beside_each_other() -> None:
    row = asdict(
        Row("selective_scan", 1, 96, 32, 32, 64, "float32", "forward", ms=0.25, of_floor=0.41, mamba_ms=0.81,
            mamba_ratio=3.24, call_ms=0.4, peak_mb=120.0)
    )  # fmt: skip  # one line of a table
    network = {"model": "tiny", "what": "training step", "dtype": "float32", "batch": 16, "ms": 90.0, "call_ms": 95.0,
               "original_ms": 55.0, "original_ratio": 0.61, "peak_mb": 500.0}  # fmt: skip  # another
    key = "float32 batch 16"
    about = ("operator", "dtype", "batch", "height", "width", "channels", "passes")
    named = {name: row[name] for name in about}
    contents = {
        "machine": {"GPU": "NVIDIA H200", "driver": "580.1", "torch": "2.13.0", "mamba-ssm": None, "tiny": False},
        "predicted": [named | {"predicted_ms": 0.213}, named | {"batch": 1, "predicted_ms": 9.9}],
        "parts": {
            "exact": {"state": "failed", "rows": {"gate": {"failed": True}, "scan": {"failed": False}}},
            "operators": {"state": "done", "rows": {"scan": {"passes": [row]}}},
            "network": {"state": "done", "rows": {
                f"{key} eager": {"rows": [network]}, f"{key} graphed": {"training step": {"ms": 9.5}}}},
        },
    }  # fmt: skip  # a file of findings
    text = gpu_check_tables.markdown(contents)
    assert text.startswith(
        "Measured by `python tools/kernels/gpu_check.py`: GPU NVIDIA H200, driver 580.1, torch 2.13.0."
    )
    assert "| exact | failed | 1 right, wrong: gate |" in text
    assert "predicted ms" in text
    shape, figures = "64 | 96, 32x32 | forward", "0.250 | 0.213 | 41 % | 0.810 | **3.24** | 0.400 | 120"
    assert f"| selective_scan | float32 | {shape} | {figures} |" in text
    assert "| tiny, training step | float32, 16 | 90.000 | 95.000 | 9.500 | 55.000 | 0.61 | 500 |" in text
    contents["predicted"] = []
    assert "| 0.250 | - | 41 % |" in gpu_check_tables.markdown(contents)


@pytest.mark.slow
def test_every_part_runs_at_tiny_sizes_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "findings.json"
    assert run(file) == 0, capsys.readouterr().out
    parts = findings(file)["parts"]
    assert {name: entry["state"] for name, entry in parts.items()} == {
        "exact": "done", "twice": "done", "operators": "done", "network": "done", "races": "skipped", "suite": "done",
    }  # fmt: skip  # one table
    assert not [key for entry in parts.values() for key, row in entry["rows"].items() if row.get("failed")]
    assert len(parts["operators"]["rows"]) == len(OPERATORS)
    text = file.with_suffix(".md").read_text(encoding="utf-8")
    assert "A trial at tiny sizes: its times say nothing." in text
    assert all(f"| {name} | float32 | 1 |" in text for name in OPERATORS)
    capsys.readouterr()
    assert gpu_check.main(["--json", str(file), "--table"]) == 0
    assert capsys.readouterr().out.strip() == text.strip()
