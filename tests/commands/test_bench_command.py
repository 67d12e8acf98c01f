"""``medmambase-bench``: nothing wrong is timed, what is printed is what is written, and what cannot
be measured is said. No time is asserted."""

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import HAS_TRITON
from torch import Tensor

from medmambase import MedMambaSE, ModelConfig
from medmambase.commands import bench as command
from medmambase.commands import bench_tables
from medmambase_kernels.bench import cases as bench_cases
from medmambase_kernels.bench import measure as bench
from medmambase_kernels.bench import original
from medmambase_kernels.bench.cases import OPERATORS, STATE, Case

CPU = torch.device("cpu")
UNCALLED = {"selective_scan", "causal_conv1d"}  # operators that no network of ours calls
NETWORK = ModelConfig(depths=(1, 1), dims=(8, 16), state=4)
SMALL = ["--device", "cpu", "--size", "128", "--stages", "4", "--batch", "1", "--repeat", "3", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's own peak costs a second to measure."""
    monkeypatch.setattr(command, "matmul_peak", lambda: 100.0)


def run(tmp_path: Path, *words: str) -> tuple[int, dict]:
    file = tmp_path / "bench.json"
    code = command.main([*SMALL, *words, "--json", str(file)])
    return code, json.loads(file.read_text(encoding="utf-8"))


def small(operator: str, dtype: torch.dtype = torch.float32) -> Case:
    return Case(operator, 2, 3, 5, 33, dtype)


@pytest.mark.slow
def test_the_file_holds_what_the_table_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, written = run(tmp_path)
    out = capsys.readouterr().out
    assert code == 0
    assert out.isascii()
    machine = written["environment"]
    assert machine["threads"] == torch.get_num_threads() and machine["processors"] >= 1 and machine["load"] >= 0
    busy = f"load before: {machine['load']:.1f} on {machine['processors']} processor"
    assert f"threads: {machine['threads']}, {busy}" in out
    assert [(row["operator"], row["passes"]) for row in written["rows"]] == [
        (name, passes) for name in OPERATORS for passes in bench.PASSES
    ]
    lines = [line.split() for line in out.splitlines() if " 4x4x768 " in line]
    for row, line in zip(written["rows"], lines, strict=True):
        shown = [row["operator"], "4x4x768", str(row["batch"]), row["dtype"], row["passes"]]
        shown += [
            bench_tables.figure(row["ms"]),
            bench_tables.figure(row["spread_ms"]),
            str(row["repetitions"]),
            bench_tables.figure(row["gflops"]),
        ]
        shown += [
            f"{100 * row['of_peak']:.1f}",
            bench_tables.figure(row["eager_ms"]),
            bench_tables.figure(row["eager_ratio"]),
        ]
        assert line == shown
        assert (row["repetitions"], row["eager_repetitions"]) == (3, 3)
        assert row["of_peak"] == pytest.approx(row["gflops"] / 100.0)
        assert row["eager_ratio"] == pytest.approx(row["eager_ms"] / row["same_work_ms"])
    assert written["environment"]["torch"] == version("torch")
    assert written["environment"]["device"] in out
    assert torch.backends.cpu.get_cpu_capability() in written["environment"]["device"]
    assert written["backends"] == {"float32": "cpu: the tensors are on the CPU"}
    assert all(verdict["passed"] for verdict in written["checks"])


def _scaled(y: Tensor, x: Tensor) -> Tensor:
    return y * 1.0001


def _wrong_gradient(y: Tensor, x: Tensor) -> Tensor:
    return y + 1e-3 * (x - x.detach())


def _not_a_number(y: Tensor, x: Tensor) -> Tensor:
    return torch.full_like(y, float("nan")) + y


def _raises(y: Tensor, x: Tensor) -> Tensor:
    raise RuntimeError("ptxas: no kernel für you")


@pytest.mark.parametrize("fault", [_scaled, _wrong_gradient, _not_a_number, _raises])
def test_a_wrong_engine_is_refused_and_the_others_are_still_timed(
    fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = bench_cases.selective_scan_2d

    def engine(x, *rest, **named):
        y = right(x, *rest, **named)
        return y if named["backend"] == "reference" else fault(y, x)

    monkeypatch.setattr(bench_cases, "selective_scan_2d", engine)
    code, written = run(tmp_path, "--operator", "selective_scan_2d", "squeeze_excite", "--compare", "0")
    out = capsys.readouterr().out
    assert code == 1
    assert "check: selective_scan_2d float32 IS WRONG and will not be timed" in out
    assert out.isascii()
    assert {row["operator"] for row in written["rows"]} == {"squeeze_excite"}
    assert [verdict["passed"] for verdict in written["checks"]] == [False, True]


@pytest.mark.parametrize("wrong", ["selective_scan_2d", "squeeze_excite", "gated_norm", "depthwise_silu"])
def test_a_network_whose_operator_is_wrong_is_not_timed(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = command.check
    monkeypatch.setattr(
        command,
        "check",
        lambda cases, *rest: (
            bench.Verdict(wrong, "float32", 1.0, "y", 0.0) if cases[0].operator == wrong else right(cases, *rest)
        ),
    )
    monkeypatch.setitem(command.PRESETS, "nano", NETWORK)
    code, written = run(tmp_path, "--operator", "--network", "nano")
    assert (code, written["network"]) == (1, [])


def test_a_comparison_with_another_result_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = original.loop_scan
    monkeypatch.setattr(bench, "loop_scan", lambda *arguments: right(*arguments) * 1.01)
    code, written = run(tmp_path, "--operator", "selective_scan")
    assert code == 1
    assert all(
        row["ms"] and row["eager_ms"] is None and "eager: differs from ours by" in row["note"]
        for row in written["rows"]
    )
    assert "not compared" in capsys.readouterr().out


def test_an_engine_that_raises_while_it_is_timed_costs_its_line_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench.Bench._figures

    def figures(self, case, *rest):
        if case.operator == "selective_scan":
            raise ValueError("shared memory")
        return right(self, case, *rest)

    monkeypatch.setattr(bench.Bench, "_figures", figures)
    code, written = run(tmp_path, "--operator", "selective_scan", "squeeze_excite")
    assert code == 1
    assert [(row["note"], row["ms"] is None) for row in written["rows"]] == [
        ("ValueError: shared memory", True)
    ] * 2 + [("", False)] * 2


def test_a_comparison_larger_than_its_limit_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = 4 * 768 * 16 * STATE
    for limit, compared in ((states / 1e6, True), (0.99 * states / 1e6, False), (0, False)):
        _, written = run(tmp_path, "--operator", "selective_scan", "squeeze_excite", "--compare", str(limit))
        assert [row["eager_ms"] is not None for row in written["rows"]] == [compared] * 2 + [
            limit > 0
        ] * 2  # the gate keeps no states
        assert ("eager" in capsys.readouterr().out) == (limit > 0)


def test_the_operators_of_a_network_are_checked_on_its_maps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, list[Case]] = {}

    def check(cases, device, backend):
        seen[cases[0].operator] = list(cases)
        return bench.Verdict(cases[0].operator, "float32", 0.0, "y", 1.0)

    monkeypatch.setattr(command, "check", check)
    monkeypatch.setattr(command, "network_rows", lambda *_: iter(()))
    monkeypatch.setitem(command.PRESETS, "nano", NETWORK)
    run(tmp_path, "--operator", "gated_norm", "--network", "nano", "--stages", "4")
    assert set(seen) == set(OPERATORS) - UNCALLED
    for name, cases in seen.items():
        assert cases[:2] == bench_cases.reduced(name, torch.float32)
        assert [(c.height, c.width, c.channels, c.state) for c in cases[2:]] == [
            (32, 32, 8, 4 if "scan" in name else STATE), (16, 16, 16, 4 if "scan" in name else STATE)
        ]  # fmt: skip  # a table


def test_a_device_without_a_clock_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.console, "device", torch.device)
    assert command.main(["--device", "mps"]) == 2
    assert "cannot time --device mps here; give cpu or cuda" in capsys.readouterr().err


def test_a_backend_that_cannot_run_here_is_the_environments_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        assert command.main(["--device", "cpu", "--backend", "triton"]) == 4
    said = (
        "medmambase-bench: backend 'triton' was asked for (--backend), but the tensors are on cpu, and Triton needs an"
    )
    assert capsys.readouterr().err.startswith(said)


def test_a_networks_step_and_prediction_stand_beside_the_originals(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "SIZES", (32,))
    monkeypatch.setitem(command.FULL, "size", [32])
    monkeypatch.setitem(command.PRESETS, "nano", NETWORK)
    words = "--device cpu --operator --network nano --batch 2 --repeat 3 --json"
    assert command.main([*words.split(), str(tmp_path / "n.json")]) == 0
    written = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))
    assert [row["what"] for row in written["network"]] == ["training step", "prediction"]
    for row in written["network"]:
        assert [row[name] for name in ("model", "size", "batch", "repetitions")] == ["nano", 32, 2, 3]
        assert row["original_scan"] == "a loop in eager PyTorch"
        assert row["images_per_s"] == pytest.approx(2e3 / row["ms"])
        assert row["original_ratio"] == pytest.approx(row["original_ms"] / row["ms"])
    assert {verdict["operator"] for verdict in written["checks"]} == set(OPERATORS) - UNCALLED


def test_a_network_that_raises_costs_its_lines_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = MedMambaSE.forward
    monkeypatch.setattr(
        MedMambaSE, "forward", lambda self, image: right(self, image) if image.is_meta else _raises(image, image)
    )
    monkeypatch.setitem(command.PRESETS, "nano", NETWORK)
    code, written = run(tmp_path, "--operator", "--network", "nano")
    assert code == 1
    assert [(row["ms"], row["note"].split(":")[0]) for row in written["network"]] == [(None, "RuntimeError")] * 2


def test_a_flag_given_by_hand_wins_over_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(command, "_bench", lambda options, *_: seen.append(options) or 0)
    assert command.main(["--quick", "--batch", "3", "--device", "cpu"]) == 0
    assert command.main(["--device", "cpu"]) == 0
    assert [(o.size, o.stages, o.batch, o.repeat) for o in seen] == [
        ([128], [2, 4], [3], 5),
        ([128, 224], [1, 2, 3, 4], [1, 16, 64], None),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fast"], "medmambase-bench: there is no flag --fast; the nearest is --batch"),
        (["--operator", "scan"], "invalid choice: 'scan'"),
        (["--stages", "5"], "invalid choice: 5"),
        (["--batch", "0"], "got '0', wanted a number that is at least 1"),
        (["--repeat", "two"], "got 'two', wanted a number that is at least 3"),
        (["--compare", "nan"], "got 'nan', wanted a number that is at least 0"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--sweep", "--device", "cpu"], "the backend is cpu: the tensors are on the CPU"),
        (["--sweep", "--network"], "--network is tiny, but --sweep times other launches of the scans alone; leave out"),
        (["--sweep", "--compare", "0"], "--compare is 0.0, but --sweep times other launches of the scans alone"),
        (["--json", "no/such/folder/x.json"], "its folder does not exist; give a file in one that does"),
    ],
)
def test_what_cannot_be_measured_is_usage(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_tables, "print_head", lambda *_: pytest.fail("it went on to measure"))
    try:
        code = command.main(words)
    except SystemExit as stopped:  # argparse's own
        code = stopped.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels are compiled")
def test_interpreted_kernels_are_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # Else a fault here would cost hours.
    monkeypatch.setattr(bench_tables, "print_head", lambda *_: pytest.fail("it went on to measure"))
    assert command.main(["--device", "cpu", "--backend", "triton"]) == 2
    assert "runs the kernels in Python, so times are meaningless" in capsys.readouterr().err


def test_a_card_is_described_with_its_driver_and_the_table_has_its_floors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {
        "name": "Some GPU",
        "multi_processor_count": 10,
        "clock_rate": 1_000_000,
        "memory_clock_rate": 1_000_000,
        "memory_bus_width": 400,
    }
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**known, major=9, minor=0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(command, "driver_and_clock", lambda uuid: ("580.1", None))
    machine, card = command._machine(torch.device("cuda"))
    bench_tables.print_head(machine, {}, "")
    assert "device: Some GPU, 10 SMs, 1.0 GHz, 100.0 GB/s, driver 580.1" in capsys.readouterr().out
    for busy, said in ((None, "unknown"), (0.25, "0.2"), (12.0, "12.0")):
        bench_tables.print_head(machine | {"threads": 3, "processors": 8, "load": busy}, {}, "")
        assert f"threads: 3, load before: {said} on 8 processors\n" in capsys.readouterr().out
    row = next(bench.Bench(CPU, repeat=3, card=card).rows(small("selective_scan")))
    floors = card.floors(
        bench.work_of(small("selective_scan"), bench_cases.operator(small("selective_scan"), CPU), backward=False)
    )
    assert (row.exp_floor_ms, row.issue_floor_ms, row.bytes_floor_ms) == (floors.exp, floors.issue, floors.bytes)
    assert row.of_floor == floors.bound / row.ms
    bench_tables.print_table(bench_tables.COLUMNS, {"", "cuda"}, iter([row]))
    shown = capsys.readouterr().out.splitlines()[-1].split()
    assert shown[-4:] == [
        *map(bench_tables.figure, (floors.exp, floors.issue, floors.bytes)),
        f"{100 * row.of_floor:.1f}",
    ]
    assert row.gflops is None


def test_a_sweep_proposes_what_is_faster_than_the_tables_launch_by_more_than_the_spread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        ("forward", "A", 2.0),
        ("forward", "B", 1.0),
        ("forward", "C", None),
        ("backward", "D", 2.0),
        ("backward", "E", 1.99),
    ]
    monkeypatch.setattr(command, "sweep", lambda case, bench: iter(found))
    (entry,) = command._sweep(
        bench.Bench(CPU), [small("selective_scan_2d"), small("squeeze_excite")]
    )  # the gate has no such launches
    assert entry["launches"] == [{"pass": step, "launch": name, "ms": ms} for step, name, ms in found]
    assert [line.split() for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["forward", "1.000", "2.00x", "B", "<-", "proposed"],
        ["forward", "2.000", "1.00x", "A", "<-", "the", "table's"],
        ["forward", "refused", "C"],
        ["backward", "1.990", "1.01x", "E"],
        ["backward", "2.000", "1.00x", "D", "<-", "the", "table's"],
    ]
