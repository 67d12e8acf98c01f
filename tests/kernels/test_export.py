"""What stands for the operators in exported graphs equals their definition, and ONNX files of any
model that holds them compute what it does."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, relative_error
from operators import OPERATORS, every_operator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medmambase_kernels import (
    ExportError,
    SelectiveScan,
    check_onnx,
    export,
    export_onnx,
    onnx_session,
    plain_program,
    selective_scan_2d,
)
from medmambase_kernels._export.operators import decompositions, softplus
from medmambase_kernels._export.recurrence import CHUNK, chunked

try:
    check_onnx()
    WITHOUT_ONNX = ""
except ImportError as error:
    WITHOUT_ONNX = str(error)
needs_onnx = pytest.mark.skipif(bool(WITHOUT_ONNX), reason=WITHOUT_ONNX)
LENGTHS = (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3)


class Decomposed(TorchDispatchMode):
    """Computes each operator of ours by what stands for it in an exported graph."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.replaced = decompositions(chunked), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.table:
            self.replaced += 1
            return self.table[function](*args)
        return function(*args, **(kwargs or {}))


@every_operator
@pytest.mark.parametrize("length", LENGTHS)
def test_what_stands_for_an_operator_equals_its_definition(operator: str, length: int) -> None:
    sample = OPERATORS[operator]
    tensors = sample.tensors(2, length)
    with torch.no_grad(), Decomposed() as mode:
        found = sample.function(*tensors, backend="torch")
    assert mode.replaced == 1
    expected = sample.function(*tensors, backend="reference")
    assert relative_error(found, expected) <= 4 * sample.factor * TOLERANCE[torch.float32]


def test_a_scan_of_no_steps_keeps_its_state() -> None:
    sample = OPERATORS["scan with all arguments"]
    tensors = sample.tensors(2, 0)
    with torch.no_grad(), Decomposed():
        found = sample.function(*tensors, backend="torch")
    assert torch.equal(found, tensors[-1].flatten(1))


def test_chunks_hold_where_decays_vanish_and_where_they_stay() -> None:
    """A form that divides by products of decays, or takes exp of positive sums, overflows here."""
    torch.manual_seed(1)
    delta = torch.cat([torch.full((40, 1, 1, 1, 2), 30.0), torch.zeros(40, 1, 1, 1, 2)])[torch.randperm(80)]
    drive, B, C = torch.randn(80, 1, 1, 1, 2), torch.randn(80, 1, 1, 3, 1), torch.randn(80, 1, 1, 1, 3)
    A = torch.tensor([-20.0, -1.0, -1e-4])[None, :, None].expand(1, 3, 2)
    last, y = chunked(torch.ones(1, 1, 3, 2), delta, drive, A, B, C)
    state, expected = torch.ones(1, 1, 3, 2, dtype=torch.float64), []
    for step in range(80):
        state = torch.exp(delta[step].double() * A) * state + drive[step].double() * B[step]
        expected.append(C[step].double() @ state)
    assert relative_error(y, torch.stack(expected)) <= 1e-5
    assert relative_error(last, state) <= 1e-5


def test_softplus_keeps_its_digits_where_steps_are_small() -> None:
    x = torch.linspace(-30, 30, 601)
    assert ((softplus(x).double() / nn.functional.softplus(x.double(), threshold=1e9)) - 1).abs().max() < 4e-7


class Reads(nn.Module):
    """Somebody's own model: a sequence, both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.scan, self.head = (
            nn.Linear(3, 8),
            SelectiveScan(8, state=4, bidirectional=True),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scan(self.enter(x)).mean(1))


class Looks(nn.Module):
    """Somebody's own model: an image, in four directions."""

    def __init__(self) -> None:
        super().__init__()
        _, *sizes = OPERATORS["four directions"].tensors(1, 3)
        self.weights = nn.ParameterList(sizes[1:])
        self.project = nn.Linear(4, 4 * 7)

    def forward(self, image: Tensor) -> Tensor:
        return selective_scan_2d(image, self.project(image).unflatten(-1, (4, 7)), *self.weights)


@needs_onnx
def test_a_file_of_any_length_computes_what_a_model_of_ones_own_does(tmp_path: Path) -> None:
    model, path = Reads().train(), tmp_path / "modell ü.onnx"
    difference = export_onnx(
        model, torch.randn(1, 21, 3), path, dynamic=[{0: "batch", 1: "length"}], outputs=["score"],
        metadata={"made by": "me"},
    )  # fmt: skip  # one argument list
    assert difference <= 1e-5
    assert model.training
    session = onnx_session(path, 1)
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("x", ["batch", "length", 3])]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("score", ["batch", 2])]
    assert session.get_modelmeta().custom_metadata_map == {"made by": "me"}
    for batch, length in ((1, 1), (3, 50), (16, 17)):
        x = torch.randn(batch, length, 3)
        (found,) = session.run(None, {"x": x.numpy()})
        assert relative_error(torch.from_numpy(found), model(x)) <= 1e-5
    onnx = pytest.importorskip("onnx")
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    assert {one.domain for one in written.opset_import} == {""}
    operators = [node.op_type for node in written.graph.node]
    assert {node.domain for node in written.graph.node} == {""}
    assert operators.count("Scan") == 2


@needs_onnx
def test_a_file_of_a_scan_in_four_directions_computes_the_same(tmp_path: Path) -> None:
    model, path = Looks(), tmp_path / "looks.onnx"
    assert export_onnx(model, torch.randn(2, 5, 3, 4), path) <= 1e-5
    for batch, scale in ((1, 1), (3, 1), (16, 1), (3, 1e3)):  # the last: steps so long that states vanish
        image = scale * torch.randn(batch, 5, 3, 4)
        (found,) = onnx_session(path, 1).run(None, {"image": image.numpy()})
        assert relative_error(torch.from_numpy(found), model(image)) <= 1e-5


@needs_onnx
def test_a_file_of_one_length_takes_any_batch(tmp_path: Path) -> None:
    model, path = Reads(), tmp_path / "reads.onnx"
    assert export_onnx(model, torch.randn(1, 21, 3), path) <= 1e-5
    session = onnx_session(path, 1)
    assert [one.shape for one in session.get_inputs()] == [["batch", 21, 3]]
    for batch in (1, 3, 16):
        x = torch.randn(batch, 21, 3)
        (found,) = session.run(None, {"x": x.numpy()})
        assert relative_error(torch.from_numpy(found), model(x)) <= 1e-5


def test_a_plain_program_is_read_without_our_operators() -> None:
    model, file = Looks().eval(), io.BytesIO()
    torch.export.save(plain_program(model, [torch.randn(2, 5, 3, 4)], [{0: "batch"}]), file)
    file.seek(0)
    program = torch.export.load(file)
    assert not [node for node in program.graph.nodes if "medmambase" in str(node.target)]
    image = torch.randn(7, 5, 3, 4)
    assert relative_error(program.module()(image), model(image)) <= 1e-5


@needs_onnx
def test_onnxruntime_records_nothing(tmp_path: Path) -> None:
    """Unasked, it writes an identifier and a record below the home of whoever runs it."""
    program = "from medmambase_kernels import onnx_session\ntry:\n    onnx_session(b'')\nexcept Exception:\n    pass"
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": "", "USERPROFILE": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    environ = {key: value for key, value in os.environ.items() if key != export.NO_RECORD}
    search = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environ | search | home, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name.casefold()]


class Branches(nn.Module):
    """What torch.export cannot follow: it asks for values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


@needs_onnx
def test_a_file_that_differs_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"small.onnx: not written, since onnxruntime's results differ"):
        export_onnx(Looks(), torch.randn(2, 5, 3, 4), tmp_path / "small.onnx", tolerance=-1.0)
    with pytest.raises(ExportError, match=r"torch\.export cannot follow the module"):
        export_onnx(Branches(), torch.randn(2, 3), tmp_path / "small.onnx")
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path) -> None:
    for module, example, dynamic, error, said in (
        ("model", torch.ones(1), None, TypeError, "module is of type str; it must be a torch.nn.Module"),
        (nn.Identity(), [np.ones(1)], None, TypeError, r"example\[0\] is of type ndarray; it must be a torch.Tensor"),
        (nn.Identity(), torch.ones(1), [], ValueError, "dynamic has 0 entries; give one for each of the 1 tensors"),
        (nn.Identity(), torch.ones(1), [{1: "length"}], ValueError, r"dynamic\[0\] has axis 1, and example\[0\] has"),
        (nn.Linear(1, 1, device="meta"), torch.ones(1), None, ValueError, "is on meta; move both to the CPU first"),
    ):
        with pytest.raises(error, match=said):
            export_onnx(module, example, tmp_path / "x.onnx", dynamic=dynamic)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(ImportError, match="ONNX needs onnxscript, which is not installed; run pip install onnx"):
        export_onnx(nn.Identity(), torch.ones(1), tmp_path / "x.onnx")
