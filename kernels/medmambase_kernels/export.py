"""Write a model that holds these operators as an ONNX file, of ONNX's own operators alone.

What each operator becomes is in ``_export``. The packages onnx, onnxscript and onnxruntime, the
extra ``onnx``, are imported when they are needed.
"""

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmambase_kernels._export.onnx_scan import name_axes, put_scans
from medmambase_kernels._export.operators import decompositions
from medmambase_kernels._export.recurrence import chunked, symbolic

OPSET = 18  # of ONNX 1.13, from 2022: what runs such files anywhere knows it
# Set before onnxruntime is imported: else it keeps an identifier of the machine and a record of
# what is run, to be sent to its makers.
NO_RECORD = "ORT_DISABLE_TELEMETRY"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Axes = Mapping[int, str]


class ExportError(RuntimeError):
    """A model cannot be exported, or its file would compute something else; the message says what
    to do."""


def export_onnx(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: Path | str,
    *,
    dynamic: Sequence[Axes] | None = None,
    outputs: Sequence[str] = ("output",),
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-5,
) -> float:
    """Write ``module`` in evaluation mode as an ONNX file that needs nothing of ours, run it in
    onnxruntime, and leave it only if it computes the same.

    Each operator of this package becomes ONNX's own, a scan its Scan; the rest is PyTorch's export.

    Args:
        example: the arguments of ``forward``, tensors on the CPU. With them the file is compared.
        dynamic: for each of them the axes that may have any length, each with a name:
        [{0: "batch", 1: "length"}] for one (b, l, d). None: the first axis of each, "batch".
        outputs: the names of the results. Those of the inputs are the parameters' of ``forward``.
        metadata: what else the file holds, names and texts.
        tolerance: the largest difference allowed, as a share of the result's largest magnitude.

    Returns the largest difference found, as such a share.

    Raises TypeError for an argument of another type; ValueError for axes that are not there, and
    for a module or tensors elsewhere than on the CPU; ImportError where a package is missing;
    ExportError where the module cannot be exported, or the file differs: then none is left.
    """
    check_onnx()
    path = Path(path)
    given = (example,) if isinstance(example, Tensor) else tuple(example)
    _check(module, given)
    axes = [{0: "batch"} for _ in given] if dynamic is None else list(dynamic)
    given = _of_several(given, axes)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            expected = module(*given)
        proto = onnx_model(module, given, axes, outputs)
    finally:
        for part, mode in modes:
            part.training = mode
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString()
    wanted = [expected] if isinstance(expected, Tensor) else list(expected)
    found = onnx_session(content).run(None, dict(zip(_names(module, given), (t.numpy() for t in given), strict=True)))
    difference = max(_difference(torch.from_numpy(one), t) for one, t in zip(found, wanted, strict=True))
    if not difference <= tolerance:
        raise ExportError(
            f"{path}: not written, since onnxruntime's results differ from the module's by {difference:.1e} of their "
            f"largest magnitude, and tolerance is {tolerance:g}; give a larger one if that is small enough"
        )
    write(path, content)
    return difference


def onnx_model(module: nn.Module, given: Sequence[Tensor], axes: Sequence[Axes], outputs: Sequence[str]) -> Any:
    """Return the module as an ``onnx.ModelProto``. Arguments as ``export_onnx`` takes them, with at
    least two of what is dynamic. Raises ExportError."""
    program = exported(module, given, axes)
    try:
        with _quiet():
            program = program.run_decompositions(decompositions(symbolic))
            written: Any = torch.onnx.export(
                program, input_names=_names(module, given), output_names=list(outputs), opset_version=OPSET,
                dynamo=True, verbose=False, external_data=False,
            )  # fmt: skip  # one argument list
    except Exception as error:  # the exporter raises nearly every type there is
        raise ExportError(f"the module cannot be written as ONNX: {_first_line(error)}") from error
    put_scans(written.model)
    name_axes(written.model, axes)
    return written.model_proto


def plain_program(module: nn.Module, given: Sequence[Tensor], axes: Sequence[Axes]) -> torch.export.ExportedProgram:
    """Return the module as a program of PyTorch's own operators, which ``torch.export.load`` reads
    without this package. The lengths of scans are fixed. Arguments as ``onnx_model`` takes
    them. Raises ExportError."""
    program = exported(module, given, axes)
    with _quiet():
        return program.run_decompositions(decompositions(chunked))


def exported(module: nn.Module, given: Sequence[Tensor], axes: Sequence[Axes]) -> torch.export.ExportedProgram:
    """Return the module as ``torch.export`` sees it, with our operators as nodes. Raises
    ExportError."""
    sizes = {name: torch.export.Dim(name) for each in axes for name in each.values()}
    shapes = tuple({axis: sizes[name] for axis, name in each.items()} for each in axes)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, tuple(given), dynamic_shapes=(shapes,) if _takes_any(module) else shapes)
    except Exception as error:  # PyTorch raises nearly every type there is
        raise ExportError(f"torch.export cannot follow the module: {_first_line(error)}") from error


def onnx_session(content: bytes | Path, threads: int = 0) -> Any:
    """Return onnxruntime's session on the CPU; ``threads`` 0: as many as it takes by itself."""
    os.environ.setdefault(NO_RECORD, "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    source = str(content) if isinstance(content, Path) else content
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def check_onnx() -> None:
    """Raise ImportError where a package that ONNX needs is missing, or PyTorch is too old."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; run pip "
            f"install {' '.join(PACKAGES)}"
        )
    if not hasattr(torch.onnx, "ops"):
        raise ImportError(f"ONNX needs PyTorch 2.8, and this is {torch.__version__}; install a newer one")


def write(path: Path, content: bytes) -> None:
    """Write a file in one step: a kill at any byte leaves what was there."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _check(module: object, given: tuple[object, ...]) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is of type {type(module).__name__}; it must be a torch.nn.Module")
    for position, t in enumerate(given):
        if not isinstance(t, Tensor):
            raise TypeError(f"example[{position}] is of type {type(t).__name__}; it must be a torch.Tensor")
    tensors = (*module.parameters(), *module.buffers(), *given)
    for t in tensors:
        if isinstance(t, Tensor) and t.device.type != "cpu":
            raise ValueError(f"the module or its example is on {t.device}; move both to the CPU first")


def _of_several(given: Sequence[Tensor], axes: Sequence[Axes]) -> tuple[Tensor, ...]:
    """The tensors with two of everything that is dynamic and was one: of one, PyTorch takes it that
    it is always one. Raises ValueError for axes that are not there."""
    if len(axes) != len(given):
        raise ValueError(f"dynamic has {len(axes)} entries; give one for each of the {len(given)} tensors of example")
    found = []
    for position, (t, each) in enumerate(zip(given, axes, strict=True)):
        for axis in each:
            if not 0 <= axis < t.dim():
                raise ValueError(
                    f"dynamic[{position}] has axis {axis}, and example[{position}] has shape {tuple(t.shape)}; count "
                    f"its axes from 0"
                )
            if t.shape[axis] == 1:
                t = t.repeat_interleave(2, axis)
        found.append(t)
    return tuple(found)


def _takes_any(module: nn.Module) -> bool:
    """Whether forward takes its arguments as ``*arguments``."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return kinds[:1] == [inspect.Parameter.VAR_POSITIONAL]


def _names(module: nn.Module, given: Sequence[Tensor]) -> list[str]:
    names = list(inspect.signature(module.forward).parameters)
    return [f"{names[0]}_{i}" for i in range(len(given))] if _takes_any(module) else names[: len(given)]


def _difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, over the largest magnitude; infinite for what is no number."""
    if found.shape != wanted.shape or not wanted.numel():
        return 0.0 if found.shape == wanted.shape else float("inf")
    difference = (found.double() - wanted.double()).abs().max().item()
    scale = max(wanted.double().abs().max().item(), 1e-30)
    return difference / scale if difference == difference else float("inf")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the console what PyTorch says there of itself, and of packages that no model here
    needs."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
