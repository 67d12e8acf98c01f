"""Export a trained network: ``medmambase.export_run("runs/scans-001")`` writes ``model.onnx``."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from medmambase.config import ConfigError
from medmambase.data.decoded.image_set import Progress, no_progress
from medmambase.files import write_bytes, write_text
from medmambase.inference.ensemble import Ensemble
from medmambase.inference.loading import load_ensemble, load_network, temperature_of
from medmambase.inference.predictor import Predictor
from medmambase.model.classifier import Trainable
from medmambase.portable import recipe
from medmambase.portable.images import compared_images
from medmambase.portable.metadata import metadata_of
from medmambase.portable.network import PortableNetwork
from medmambase.portable.parity import MOST_OFF, Parity, Run, compare
from medmambase.run_folder import ONNX, PT2, folds_of
from medmambase.validation import check, check_functions, check_path
from medmambase_kernels import ExportError, check_onnx, onnx_model, onnx_session, plain_program

Format = Literal["onnx", "pt2"]
OUTPUT = "probabilities"
PROGRAM = "predict_with_{}.py"


@dataclass(frozen=True)
class Exported:
    """A file that was written: its ``path``, the ``program`` beside it that prepares pictures for
    it (None for pt2), how it compares with the network, and on which images."""

    path: Path
    program: Path | None
    parity: Parity
    compared_on: str


def export_run(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    format: Format = "onnx",
    images: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> Exported:
    """Write the network of a run as a file that other programs read without this package.

    The file takes uint8 images (b, size, size, channels), any number of them, prepared as in
    training, and gives calibrated probabilities. It is run on the run's own test images, and stays
    only where no probability differs by more than 1e-5 and every image is called alike.

    ``run``: the folder of a run, of a network, or of a cross-validation, whose networks then all
    are in the file. ``output``: the file, ``model.onnx`` or ``model.pt2`` in the run's folder if
    None. ``format``: "onnx", which wants the extra onnx and leaves a program beside the file that
    prepares pictures for it; or "pt2", of PyTorch's own operators, for ``torch.export.load``.
    ``images``: others to compare on, where the run's are no longer there.

    Raises ConfigError for another format, or where a package is missing; DataError where there is
    no run, or nothing to compare on; ExportError where the network cannot be exported, or the file
    would differ.
    """
    folder = check_path("run", run)
    given = None if images is None else check_path("images", images)
    check("format", format, Format, ConfigError)
    check_functions({"progress": progress}, ConfigError)
    if format == "onnx":
        _check_packages()
    path = folder / {"onnx": ONNX, "pt2": PT2}[format] if output is None else check_path("output", output)
    folds = folds_of(folder)
    network: Trainable | Ensemble = load_ensemble(folder) if folds else load_network(folder)
    temperature = 1.0 if folds else temperature_of(folder, None)  # each network of several has its own
    predictor = Predictor(network, device="cpu", temperature=temperature)
    pictures, which = compared_images(folder, network, given, progress)
    portable = PortableNetwork(network, temperature)
    temperatures = network.temperatures if isinstance(network, Ensemble) else (temperature,)
    about = metadata_of(folder, network, temperatures)
    content, call = (_onnx if format == "onnx" else _pt2)(portable, about)
    parity = compare(predictor, call, pictures)
    if not parity.holds:
        raise ExportError(
            f"{path}: not written, since it would not give the network's answers: on {which} a probability differs by "
            f"{parity.difference:.1e} (at most {MOST_OFF:g}), and {parity.equal:.1%} are called alike (all must be)"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    program = None
    if format == "onnx":
        how = network.preprocessing
        program = path.with_name(PROGRAM.format(path.stem))
        write_text(program, recipe.program(path.name, program.name, how.size, how.channels, how.resize))
    return Exported(path, program, parity, which)


def _check_packages() -> None:
    try:
        check_onnx()
    except ImportError as error:
        raise ConfigError(f"--format is onnx, and {error}") from error


def _onnx(portable: PortableNetwork, about: dict[str, str]) -> tuple[bytes, Run]:
    model = onnx_model(portable, [portable.example()], [{0: "batch"}], [OUTPUT])
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    session = onnx_session(content, torch.get_num_threads())

    def call(images: npt.NDArray[np.uint8]) -> Any:
        return session.run([OUTPUT], {"image": images})[0]

    return content, call


def _pt2(portable: PortableNetwork, about: dict[str, str]) -> tuple[bytes, Run]:
    program = plain_program(portable, [portable.example()], [{0: "batch"}])
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=about)
    content = file.getvalue()
    module = torch.export.load(io.BytesIO(content)).module()

    def call(images: npt.NDArray[np.uint8]) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return content, call


def describe(exported: Exported) -> list[str]:
    """Return what a person should know of a file, as lines."""
    parity = exported.parity
    threads = "1 thread" if parity.threads == 1 else f"{parity.threads} threads"
    size = exported.path.stat().st_size / 1e6
    return [
        f"{exported.path.resolve()}: {size:.1f} MB",
        f"compared on {exported.compared_on}: largest difference of a probability {parity.difference:.1e}, called "
        f"alike {parity.equal:.1%}",
        f"one image on the CPU with {threads}: {parity.file_ms:.1f} ms by the file, {parity.own_ms:.1f} ms here",
    ]
