"""Predict the times of the operators on an H200, without a GPU, from the machine code that the
kernels compile to and from the launches that they make: every figure is PREDICTED, none measured.

    python tools/kernels/predict_times.py
    python tools/kernels/predict_times.py --operator selective_scan_2d --size 224 --detail
    python tools/kernels/predict_times.py --batch 16 --candidates

How, and how well: operator_times.py and sm_model.py. The stages are those of ``tiny``. Beside the
times stand those that are wanted (wanted_times.py), and whether they are met. --detail
shows each kernel's programs and microseconds; --candidates predicts the other launches that the
launch table could choose.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine_code
from compiled_kernel import prepare
from wanted_times import HALF, scan_kernel_of, wanted

if TYPE_CHECKING:
    from medmambase_kernels.bench.cases import Case
    from operator_times import PredictedTime

SCANS = ("selective_scan", "selective_scan_2d")
STAGES = (1, 2, 3, 4)
PASSES = ("forward", "forward keeping states", "forward+backward")


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Predict the operators' times on an H200, without a GPU.")
    parser.add_argument("--operator", nargs="+", default=list(SCANS), help="which operators (default: both scans)")
    parser.add_argument("--size", nargs="+", type=int, default=[128], choices=(128, 224), help="pixels of the images")
    parser.add_argument("--batch", nargs="+", type=int, default=[64, 16, 1], help="images at a time")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16", "float16")
    )
    parser.add_argument("--stages", nargs="+", type=int, default=list(STAGES), choices=STAGES, help="stages of tiny")
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES, help="what is run")
    parser.add_argument("--detail", action="store_true", help="show the parts of each time")
    parser.add_argument("--candidates", action="store_true", help="predict what the launch table did not choose too")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 16), help="processes")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep what was compiled there, and read it again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every prediction to FILE")
    options = parser.parse_args(argv)
    if (missing := prepare()) is not None:
        parser.error(missing)
    if machine_code.disassembler() is None:
        parser.error("this Triton brings no disassembler (nvdisasm), without which nothing can be predicted: use Linux")
    from medmambase_kernels.bench.cases import OPERATORS

    unknown = [name for name in options.operator if name not in OPERATORS]
    if unknown:
        parser.error(f"--operator: got {', '.join(unknown)}, wanted some of {', '.join(OPERATORS)}")
    return _candidates(options) if options.candidates else _times(options)


def _cases(options: argparse.Namespace) -> "list[tuple[Case, str]]":
    """Every case and pass, the stages of one line of the table beside each other."""
    import torch

    from medmambase_kernels.bench.cases import cases

    return [
        (case, passes)
        for operator, dtype, size, batch, passes in itertools.product(
            options.operator, options.dtype, options.size, options.batch, options.passes
        )
        for case in cases([operator], [size], options.stages, [batch], [getattr(torch, dtype)])
    ]


def _times(options: argparse.Namespace) -> int:
    from operator_times import predict_all, work_of

    asked = _cases(options)
    predicted = predict_all([work_of(case, passes) for case, passes in asked], options.jobs, options.cache)
    rows = [as_row(case, passes, time) for (case, passes), time in zip(asked, predicted, strict=True)]
    for line in table(rows, options.detail, len(options.stages)):
        print(line)
    if options.json is not None:
        beside = options.json.with_name(options.json.name + ".unfinished")
        beside.write_text(
            json.dumps({"predicted": True, "rows": rows}, indent=1) + "\n", encoding="utf-8", newline="\n"
        )
        os.replace(beside, options.json)
        print(f"all predictions: {options.json}")
    return 0


def as_row(case: "Case", passes: str, time: "PredictedTime") -> dict[str, Any]:
    """One prediction as JSON keeps it; milliseconds."""
    return {
        "operator": case.operator, "dtype": str(case.dtype).removeprefix("torch."), "stage": case.stage,
        "batch": case.batch, "height": case.height, "width": case.width, "channels": case.channels,
        "passes": passes, "predicted_ms": time.ms,
        **dataclasses.asdict(time),
    }  # fmt: skip  # one entry of the file


def table(rows: Sequence[dict[str, Any]], detail: bool, columns: int = len(STAGES)) -> list[str]:
    """List the lines of the printed table: one for each operator, dtype, batch and pass, and in it
    the stages, so many columns; under it the times that are wanted, where some are, and at the end
    those that are missed."""
    lines, before = ["PREDICTED milliseconds on an H200; nothing was measured"], ""
    rows = [*rows, *(scan_kernel_of(row) for row in rows if _is_scan_of_images(row))]
    missed, count = [], 0
    for rank in range(0, len(rows), columns):
        line = rows[rank : rank + columns]
        shapes = "".join(f"{row['channels']:>6} ch. {row['height']:>3}x{row['width']:<3}" for row in line)
        head = f"{line[0]['operator']}, {line[0]['dtype']}"
        if head + shapes != before:
            lines += ["", f"{head:32}{shapes}"]
            before = head + shapes
        label = f"batch {line[0]['batch']:3} {line[0]['passes']}"
        lines.append(f"{label:32}" + "".join(f"{row['predicted_ms']:18.3f}" for row in line))
        if detail:
            lines += [f"    {_parts(row)}" for row in line]
        most = [wanted(row, rows) for row in line]
        if any(most):
            cells = ("" if ms is None else f"{_met(row, ms)} {ms:.3f}" for row, ms in zip(line, most, strict=True))
            lines.append(f"{'    wanted at most':32}" + "".join(f"{cell:>18}" for cell in cells))
        count += sum(ms is not None for ms in most)
        missed += [
            f"    {head}, {label}, {row['channels']} ch.: {row['predicted_ms']:.4f} instead of {ms:.4f}"
            for row, ms in zip(line, most, strict=True)
            if ms is not None and _met(row, ms) == "MISSED"
        ]
    if count:
        lines += ["", f"{count - len(missed)} of {count} wanted times are met; in 16 bits {HALF} times that of float32"]
    return [*lines, *missed]


def _is_scan_of_images(row: dict[str, Any]) -> bool:
    return row["operator"] == "selective_scan_2d" and row["passes"] == "forward"


def _met(row: dict[str, Any], most: float) -> str:
    return "met" if row["predicted_ms"] <= most else "MISSED"


def _parts(row: dict[str, Any]) -> str:
    """The parts of a time: each kernel's, PyTorch's, and the launches'."""
    kernels = [f"{name} {programs} programs {1e3 * ms:.1f} us" for name, programs, ms in row["ours"]]
    around = f"PyTorch's {row['pytorch']} kernels {1e3 * row['pytorch_ms']:.1f} us"
    return f"{row['channels']} ch.: {'; '.join([*kernels, around])}; launches {1e3 * row['launches_ms']:.1f} us"


def _candidates(options: argparse.Namespace) -> int:
    """Predict every launch that the launch table offers for a scan; the chosen one comes first."""
    from medmambase_kernels._triton import launch_table
    from medmambase_kernels.bench.cases import OPERATORS
    from operator_times import Work, predict_all, work_of

    print("PREDICTED milliseconds on an H200; nothing was measured")
    offered: list[tuple[Case, str, Any, bool, Work]] = []
    for case, passes in _cases(options):
        if not OPERATORS[case.operator].scans:
            continue
        chosen = work_of(case, passes).chosen[-1]
        for row in dict.fromkeys([chosen, *launch_table.candidates(chosen)]):
            try:
                offered.append((case, passes, row, row == chosen, work_of(case, passes, instead=row)))
            except Exception as error:  # noqa: BLE001  # a launch that these inputs do not allow is no candidate
                print(f"not possible for {case.operator} with {case.channels} channels: {row}: {error}")
    times = predict_all([work for *_, work in offered], options.jobs, options.cache)
    for (case, passes, row, first, _), time in zip(offered, times, strict=True):
        if first:
            shape = f"{case.channels} ch. {case.height}x{case.width}"
            print(f"\n{case.operator}, {str(case.dtype).removeprefix('torch.')}, batch {case.batch}, {shape}, {passes}")
        print(f"{time.ms:10.3f}  {'chosen' if first else '      '}  {row}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
