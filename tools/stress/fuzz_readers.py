"""Whole files of every format that the commands read, and what reads each: for fuzz_inputs.py to
damage."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fuzz_crossval
import fuzz_pretraining
from fuzz_mutations import Case, of_bytes, of_dicom, of_image, of_json, of_npz, of_text
from fuzz_run import GREY, SMALL, TRAINING, whole_run
from fuzz_tensor_files import of_safetensors
from kill_test import image_set
from medmambase import MedMambaSE, run_folder, settings
from medmambase.config import Preprocessing
from medmambase.data import looks
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.data.reading.dicom import patient_of
from medmambase.data.reading.images import load
from medmambase.evaluation import metrics
from medmambase.evaluation.predictions import read_predictions
from medmambase.evaluation.report import figures, report, results
from medmambase.inference import held_out
from medmambase.inference.conformal import Bound
from medmambase.inference.predictor import Predictor
from medmambase.inference.unlike import Detector, Gaussian, Thresholds
from medmambase.inference.watch import NUMBERS
from medmambase.training import loop, session
from medmambase.training.history import Epoch
from write_dicom import dicom_file

_UPSTREAM = {
    "embedding.": "patch_embed.", "stages.": "layers.", "ssm_norm": "ln_1", "ssm_branch.conv.": "ssm_branch.conv2d.",
    "ssm_branch.norm": "ssm_branch.out_norm", "x_proj": "x_proj_weight", "dt_weight": "dt_projs_weight",
    "dt_bias": "dt_projs_bias", "A_log": "A_logs", "ssm_branch.D": "ssm_branch.Ds", "ssm_branch": "self_attention",
    "conv_branch": "conv33conv33conv11", "se.squeeze": "se.fc.0.weight", "se.excite": "se.fc.2.weight",
}  # fmt: skip  # a table: our names and those of the original


def cases(kind: str, folder: Path, images: Path | None = None) -> list[Case]:
    """Write the whole files of a kind into ``folder``; those of "images" come from ``images``."""
    if kind == "images":
        found = sorted(path for path in (images or folder).rglob("*") if path.is_file())
        return [_picture(folder, path) for path in found if 0 < path.stat().st_size <= 1 << 20]
    return KINDS[kind](folder)


def _picture(folder: Path, whole: Path) -> Case:
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    path.write_bytes(whole.read_bytes())
    return picture(path)


def picture(path: Path, high_depth: str = "percentile") -> Case:
    """Return the case of an image of any format that the reader knows."""
    return Case(path, of_image, partial(_image, path, high_depth))


def _image(path: Path, high_depth: str) -> str:
    image, facts = load(
        path, Preprocessing(size=32, high_depth="percentile" if high_depth == "percentile" else "range")
    )
    if tuple(image.shape) != (3, 32, 32) or facts.width < 1 or facts.height < 1:
        raise AssertionError(f"{tuple(image.shape)}, {facts}")
    return "image"


def _tables(folder: Path) -> list[Case]:
    (folder / "Images").mkdir()
    for number in range(8):
        Image.new("L", (8, 8), number).save(folder / "Images" / f"{number}.png")
    plain = "path,label\n" + "".join(f"Images/{i}.png,{'ab'[i % 2]}\n" for i in range(8))
    whole = "path;label;patient;split\n" + "".join(
        f'"Images/{i}.png";{i % 2};p{i // 2};{("train", "val", "test")[i // 2 % 3]}\n' for i in range(8)
    )
    tabs = "\ufefffile name\tdiagnosis\tcase\r\n" + "".join(
        f"Images\\{i}.png\t'={'xy'[i % 2]}\t{i}\r\n" for i in range(8)
    )
    fetal = "Image_name,Patient_num,Plane,Brain_plane,Operator,US_Machine,Train \n" + "".join(
        f"{i},{i // 2},{('Femur', 'Other')[i % 2]},Not A Brain,Op. 1,Voluson E6,{int(i < 4)}\n" for i in range(8)
    )
    made = []
    for name, text in (("plain.csv", plain), ("whole.csv", whole), ("tabs.tsv", tabs), ("fetal.csv", fetal)):
        (folder / name).write_text(text, encoding="utf-8", newline="")
        made.append(Case(folder / name, of_text, partial(_manifest, folder / name)))
    run = whole_run(folder)
    predictions = run / run_folder.TEST / run_folder.PREDICTIONS
    made.append(Case(predictions, of_text, partial(_predictions, predictions)))
    made.append(Case(run / run_folder.HISTORY, of_text, partial(_history, run / run_folder.HISTORY)))
    made.append(Case(run / run_folder.ACCESS_LOG, of_text, lambda: f"{len(results.accesses(run)) > 0} lines"))
    for path in (run / run_folder.SPLITS, run / run_folder.LAST / run_folder.IMAGES):
        made.append(Case(path, of_text, partial(_learned_from, run)))
    known = [(f"{i}.png", ("train", "val")[i % 2], f"{i:064x}") for i in range(8)]
    run_folder.write_rows(run / run_folder.LOOKS, looks.COLUMNS, known)
    made.append(Case(run / run_folder.LOOKS, of_text, partial(_predict, run)))
    return made


def _learned_from(run: Path) -> str:
    pixels, patients = held_out.learned_from(run)
    return f"{'some' if pixels else 'no'} pixels, {'some' if patients else 'no'} patients"


def _manifest(path: Path) -> str:
    return f"{'two' if len(read_manifest(path, seed=0).classes) == 2 else 'other'} classes"


def _predictions(path: Path) -> str:
    found = read_predictions(path)
    metrics.evaluate(found.labels, found.probabilities, found.classes)
    return "predictions" if len(found.clusters) else "no predictions"


def _history(path: Path) -> str:
    return f"{'epoch' if 'epoch' in figures.columns_of(path, 'epoch') else 'no'} column"


def _settings(folder: Path) -> list[Case]:
    by_hand = (
        '# of a colleague\ndata = "scans"\n'
        'model = "nano"\ndepths = [1, 1, 2, 1]\nlr = 1e-3\nepochs = 20\nlaterality = true\n'
        "group_regex = '(patient\\d+)'\nseed = 3\nrecipe = \"readme\"\n"
    )
    run = folder / "run"
    run.mkdir()
    (folder / "hand.toml").write_text(by_hand, encoding="utf-8", newline="\n")
    whole = settings.resolve({"data": "C:\\scans ü", "weights": "best"})
    (run / run_folder.CONFIG).write_text(whole.to_toml(leave_out=("data",)), encoding="utf-8", newline="\n")
    run_folder.write_private(run, {"key": "00ff" * 8, "data": "/home/a/scans"})
    return [
        Case(folder / "hand.toml", of_text, lambda: _set(settings.resolve({}, folder / "hand.toml"))),
        Case(run / run_folder.CONFIG, of_text, lambda: _set(settings.of_run(run, {}))),
        Case(run / run_folder.PRIVATE, of_text, lambda: _set(settings.of_run(run, {})) + _called(run)),
    ]


def _set(found: settings.Settings) -> str:
    again = settings.resolve({}, None) if found.to_toml() == "" else found
    again.network()
    return "settings"


def _called(run: Path) -> str:
    kept = Pseudonyms.of_run(run)
    return f", {kept.patient('a')[:7]}" if kept else ", no key"


def _json(folder: Path) -> list[Case]:
    run = whole_run(folder)
    described = run / run_folder.BEST / run_folder.DESCRIPTION
    of_run, learned = run / run_folder.DESCRIPTION, run / run_folder.CALIBRATION
    predict = partial(_predict, run)

    def learn() -> str:
        predict()
        return f"{len(found.points) > 0} points" if (found := results.read_calibration(run)) else "none"

    def tell() -> str:
        session.model_of(run)
        return report.write_report(run).name

    told = (
        run / run_folder.DATA_REPORT, run / run_folder.ENVIRONMENT, run / run_folder.TEST / run_folder.METRICS,
        run / run_folder.TEST / run_folder.CALIBRATED, run / run_folder.TEST / run_folder.MEDMNIST,
        run / run_folder.EXPLAIN / run_folder.FAITHFULNESS,
    )  # fmt: skip  # a list of files
    return [
        Case(described, of_json, predict),
        Case(learned, of_json, learn),
        Case(of_run, of_json, tell),
        Case(described, of_text, predict),
        Case(run / run_folder.APPEARANCE, of_json, predict),
        *(Case(path, of_json, tell) for path in told),
    ]


def _predict(run: Path) -> str:
    predictor = Predictor.load(run, device="cpu", backend="torch")
    if predictor.network.preprocessing.size > 1000:
        return "a network of large images, which takes its time"
    (one,) = predictor(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8))
    if one.distance is not None and math.isnan(one.distance):
        raise AssertionError("a distance that is no number")
    if "\n" in one.note:
        raise AssertionError(f"a note of several lines: {one.note!r}")
    return "a prediction" if one.problem is None and math.isclose(sum(one.by_class.values()), 1) else f"{one.problem}"


def _tensors(folder: Path) -> list[Case]:
    run = whole_run(folder)
    features, picture = (Gaussian(torch.eye(wide), torch.zeros(wide)) for wide in (SMALL.dims[-1], NUMBERS))
    bound = Bound(40.0, 0.9, 12, "images")
    detector = Detector(features, picture, Thresholds(0.05, 12, bound, bound))
    (run / run_folder.UNLIKE).write_bytes(detector.to_bytes())
    weights = run / run_folder.BEST / run_folder.WEIGHTS
    upstream, last = folder / "upstream.safetensors", folder / "training" / run_folder.LAST / run_folder.STATE
    from safetensors.torch import save

    upstream.write_bytes(save(_upstream()))
    last.parent.mkdir(parents=True)
    whole = partial(_train, folder / "training")
    whole(1)
    return [
        Case(run / run_folder.UNLIKE, of_safetensors, partial(_predict, run)),
        Case(weights, of_safetensors, lambda: f"{len(MedMambaSE.load(run / run_folder.BEST).classes)} classes"),
        Case(upstream, of_safetensors, partial(_start, upstream)),
        Case(last, of_safetensors, partial(whole, 2)),
    ]


def _upstream() -> dict[str, torch.Tensor]:
    """A network's tensors under the names of the original's code."""
    named = {}
    for key, t in MedMambaSE(SMALL).state_dict().items():
        for ours, theirs in _UPSTREAM.items():
            key = key.replace(ours, theirs)
        named[key] = (t.flatten(0, 1) if key.endswith(("A_logs", "Ds")) else t).contiguous()
    return named


def _start(path: Path) -> str:
    account: list[str] = []
    MedMambaSE.from_upstream(path, say=account.append)
    return "an original network"


class _EpochDoneError(Exception):
    """Ends a training after an epoch."""


def _train(run: Path, last: int) -> str:
    """Go on with a training until this epoch is done."""
    torch.manual_seed(0)
    network = MedMambaSE(replace(SMALL, num_classes=3), preprocessing=GREY)

    def tell(epoch: Epoch) -> None:
        if epoch.epoch == last:
            raise _EpochDoneError

    images = image_set(8, "train", 8), image_set(4, "val", 8)
    with suppress(_EpochDoneError):
        loop.train(network, *images, TRAINING, run, torch.float32, lambda items, *_: items, tell, resume=True)
    return f"epoch {last}"


def _archives(folder: Path) -> list[Case]:
    chance = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = chance.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    grey = {key: values[..., 0] if values.ndim == 4 else values.astype(np.int64) for key, values in arrays.items()}
    packed, plain, upstream = (folder / name for name in ("breastmnist.npz", "own_28.npz", "upstream.npz"))
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]  # names of arrays, not options
    np.savez(plain, **grey)  # type: ignore[arg-type]  # names of arrays, not options
    np.savez(upstream, **{key: t.numpy() for key, t in _upstream().items()})  # type: ignore[arg-type]  # names of arrays, not options
    return [
        Case(packed, of_npz, partial(_rows, packed)),
        Case(plain, of_npz, partial(_rows, plain)),
        Case(upstream, of_npz, partial(_start, upstream)),
    ]


def _rows(path: Path) -> str:
    from medmambase.data.decoded.image_set import decode
    from medmambase.data.manifest.published import forget

    try:
        images, bad = decode(read_manifest(path, seed=0).samples, GREY)
    finally:
        forget()
    for error in bad:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"not one line: {error!r}")
    return "rows, all read" if not bad else "rows, some not read" if len(images.labels) else "rows, none read"


def _dicom(folder: Path) -> list[Case]:
    made = []
    grey = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) * 20
    colour = np.stack([np.indices((40, 56)).sum(axis=0) * step % 256 for step in (1, 2, 5)], axis=2).astype(np.uint8)
    jpeg, jpeg2000 = (_encoded(colour, kind) for kind in ("JPEG", "JPEG2000"))
    for name, content in (
        ("deep", dicom_file(grey.tobytes(), (40, 56), 16, "MONOCHROME2", windows=(900, 500))),
        ("inverse", dicom_file(grey.tobytes(), (40, 56), 16, "MONOCHROME1", windows=None)),
        ("colour", dicom_file(colour.tobytes(), (40, 56), 8, "RGB", windows=None)),
        ("jpeg", dicom_file(jpeg, (40, 56), 8, "YBR_FULL_422", windows=None, syntax="1.2.840.10008.1.2.4.50")),
        ("jpeg2000", dicom_file(jpeg2000, (40, 56), 8, "RGB", windows=None, syntax="1.2.840.10008.1.2.4.90")),
    ):
        path = folder / f"{name}.dcm"
        path.write_bytes(content)
        made += [
            Case(path, of_dicom, partial(_image, path, "range" if name == "deep" else "percentile")),
            Case(path, of_bytes, partial(_patient, path)),
        ]
    return made


def _patient(path: Path) -> str:
    found = patient_of(path)
    if "\n" in found:
        raise AssertionError(f"a patient of several lines: {found!r}")
    return "image, " + ("a patient" if found else "no patient") if _image(path, "range") else ""


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    return stream.getvalue()


def _together(parts: Sequence[Callable[[Path], list[Case]]], folder: Path) -> list[Case]:
    return [case for part in parts for case in part(folder)]


KINDS: Mapping[str, Callable[[Path], list[Case]]] = {
    "csv": partial(_together, (_tables, fuzz_crossval.tables, fuzz_pretraining.tables)),
    "toml": partial(_together, (_settings, fuzz_crossval.settings_files, fuzz_pretraining.settings_files)),
    "json": partial(_together, (_json, fuzz_crossval.objects, fuzz_pretraining.objects)),
    "safetensors": partial(_together, (_tensors, fuzz_pretraining.tensors)),
    "npz": _archives,
    "dicom": _dicom,
}
