"""Create, lock and write the folder of one run, and name every file in it.

Every file is written beside its place and moved there, so that a kill at any byte never spoils what
is there.
"""

import errno
import glob
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from medmambase import files
from medmambase.privacy import without_paths
from medmambase.tables import table

# Folders in a run's folder. BEST and LAST are networks' folders, TEST and VAL hold results.
BEST, LAST, TEST, VAL = "best", "last", "test", "val"
AUDIT, EXPLAIN, EVALUATIONS, PHANTOM, TENSORBOARD = "audit", "explain", "evaluations", "phantom", "tensorboard"
EXPLANATIONS = "explanations"  # folders of medmambase-explain; EXPLAIN is the training's own

# How the run was set up, and what it was set up on.
CONFIG = "config.toml"  # the settings, to repeat the run or to go on with it
DESCRIPTION = "config.json"  # what these settings became, and the outcome; in a network's folder: its architecture
COMMAND = "command.txt"
START = "start.json"  # which weights the network started from, and what those had learned from
ENVIRONMENT = "env.json"
DATA_REPORT = "data_report.json"
SPLITS, LOOKS = "splits.csv", "looks.csv"  # every image; how those of train and val look
DUPLICATES = "duplicates.png"  # in AUDIT
DUPLICATES_BEFORE = "twins.png"  # its name in version 0.1.0: there the report shows it

# What the training wrote while it ran.
LOG = "train.log"
CHECK_LOG = "check.log"  # of medmambase-check
HISTORY = "metrics.csv"  # one row an epoch
WEIGHTS = "model.safetensors"  # in BEST and LAST
STATE = "state.safetensors"  # in LAST: all that is needed to resume
PRETRAINED = "weights.safetensors"  # of medmambase-pretrain: a network without its head, to start from
PRETRAINING = "pretraining.json"  # beside it: what was learned, in figures
IMAGES = "images.csv"  # beside it: with it a refusal to resume can name the images that changed

ONNX, PT2 = "model.onnx", "model.pt2"  # of medmambase-export

# Results. METRICS, CALIBRATED and MEDMNIST lie beside the PREDICTIONS that they are computed from.
PREDICTIONS, METRICS, CALIBRATED, MEDMNIST = "predictions.csv", "metrics.json", "calibrated.json", "medmnist.json"
BY_PATIENT = "by_patient"  # a folder beside them: PREDICTIONS with a row for each patient, and pictures
CALIBRATION = "calibration.json"  # learned on the validation images
APPEARANCE = "appearance.json"  # what they look like
UNLIKE = "unlike.safetensors"  # how far they are from the training images
CONFORMAL = "conformal.json"  # which classes a set of them holds
DISTANCES = "distances.csv"  # beside PREDICTIONS: how far each image is from the training images
ANSWERING, ANSWERED = "answering.json", "answered.png"  # beside it: what comes of not answering
ACCESS_LOG = "test_access_log.csv"  # each time the test images were looked at
ACCESS_LOG_BEFORE = "openings.csv"  # its name in version 0.1.0: there it is read, and goes on

# A cross-validation: its folder holds that of each fold, named by FOLD and its number.
CROSSVAL = "crossval.toml"  # the settings, as in CONFIG
FOLD = "fold-"
PARTS = "folds.csv"  # by which fold each image is tested
FAILURE = "failure.log"  # in the folder of each: where in the program its last process failed
SPLITS_OF_FOLD = "fold_splits.csv"  # in the folder of each: how the images are divided for it
FOLDS = "folds.json"  # the figures of each fold, and their means
DISTILLED = "distilled"  # the run of a network that has learned from all folds, and beside it:
SOFT_LABELS, SPLITS_OF_DISTILLED = "soft_labels.csv", "distilled_splits.csv"  # what from, and on which images
LOSS = "distilled.json"  # how far it is from them

# A table of several networks: its folder, runs/<name>-TABLE-001, lies beside their runs.
TABLE = "table"
TABLE_MARKDOWN, TABLE_LATEX, TABLE_CSV = "table.md", "table.tex", "table.csv"

# Pictures, the report, and the model card.
CURVES = "curves.png"
PICTURES = "pictures.png"  # of medmambase-pretrain: inputs, targets and predictions
CONFUSION, ROC, PR, RELIABILITY, MISTAKES = "confusion.png", "roc.png", "pr.png", "reliability.png", "mistakes.png"
FAITHFULNESS, FAITHFULNESS_CURVES, GATES = "faithfulness.json", "faithfulness.png", "gates.png"  # in EXPLAIN
SHEETS, SE_STAGES = "sheet_*.png", "se_stage*.png"  # in EXPLAIN, one for each number in place of the star
OVERLAYS = "overlay_*.png"  # beside them, of images that medmambase-explain was given
REPORT = "report.html"
UNFINISHED = b'class="unfinished"'  # at its beginning while the training runs
_BEGINNING = 200  # bytes
MODEL_CARD = "MODEL_CARD.md"

# What must not be passed on with the rest.
PRIVATE = "do_not_share.toml"
_LONGEST_KEY = 64  # bytes: of BLAKE2b
_MOST_FOLDS = 10_000  # more is damage: one each is trained
_DO_NOT_SHARE = """\
# Do not pass this file on. With the key, whoever has a list of patients finds who is who in this run;
# paths tell of folders and people. The run can be used and evaluated without this file; but whether
# a patient of other data is one of its own is then unknown, and where patients are known it cannot
# be resumed.

"""

LOCK, LOCK_HOLDER = "run.lock", "run.lock.json"

Writer = Literal["training", "pretraining"]

_RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    "conin$",
    "conout$",
    *(f"{port}{i}" for port in ("com", "lpt") for i in "0123456789¹²³"),
}


class RunFolderError(Exception):
    """The folder of a run cannot be created or written; the message names it."""


def create(runs: Path, name: str) -> Path:
    """Create ``runs/<name>-001``, or the first free number. Raises RunFolderError if it cannot be
    created."""
    plain = legal_name(name)
    if len(f"{plain}-001".encode("utf-8", "surrogatepass")) > 255:  # what the file systems of all three systems take
        raise RunFolderError(
            f"the name {plain[:40]}... has {len(plain)} letters, too many for a folder; choose a shorter one with "
            f"--name"
        )
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = runs / f"{plain}-{number:03d}"
            try:
                folder.mkdir()  # fails if it exists, also when another run makes it at this very moment
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        advice = (
            "choose a shorter --name or --runs"
            if error.errno == errno.ENAMETOOLONG
            else "choose another place with --runs"
        )
        if error.errno == errno.ENOSPC:
            advice = f"free some space there, or {advice}"
        raise RunFolderError(f"{runs}: cannot create a folder there ({error.strerror or error}); {advice}") from error
    raise RunFolderError(f"{runs}: already holds {plain}-001 to {plain}-999; choose another --name")


def existing(runs: Path, name: str) -> list[Path]:
    """Return the folders that ``create`` made for this name, the newest first."""
    return sorted(runs.glob(f"{glob.escape(legal_name(name))}-[0-9][0-9][0-9]"), reverse=True)


def latest(folders: Iterable[Path], is_it: Callable[[Path], bool], anew: str) -> Path | None:
    """Return the first of ``folders``, which are ``existing``, that a command goes on with because
    ``is_it`` the run that the same command began; None where there is none.

    Raises RunFolderError where what a run was started with is damaged, or closed to this account,
    so that it may be the one; its message ends with what to do ``anew``.
    """
    try:
        return next((folder for folder in folders if is_it(folder)), None)
    except RunFolderError as error:
        raise RunFolderError(
            f"{error}; without it nobody knows whether that run is the one to continue: to {anew}"
        ) from error


def is_finished(run: Path) -> bool:
    """Return whether nothing is left to do in a run: its report, which comes last, is written, and
    is not the page of a training that has not ended."""
    try:
        with (run / REPORT).open("rb") as file:
            return UNFINISHED not in file.read(_BEGINNING)
    except OSError:
        return False


def legal_name(name: str) -> str:
    """Turn ``name`` into a file name that is valid on Windows, macOS and Linux; never empty."""
    plain = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "-", name).strip(" .-")
    # Windows takes a device's name for the device, whatever follows after a dot.
    return f"run-{plain}" if plain.partition(".")[0].rstrip().casefold() in _RESERVED else plain or "run"


@contextmanager
def held(run: Path, patience: float = 0) -> Iterator[None]:
    """Lock ``run`` for this process. Raises RunFolderError if another process is still using it
    after ``patience`` seconds, or if it cannot be written.

    The lock is the operating system's, so it ends with its process, however that ends: nothing is
    left to clear away after a kill.
    """
    lock = FileLock(run / LOCK, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise RunFolderError(
            f"{run}: {_holder(run)} is using it; wait until it ends, stop it, or choose another folder"
        ) from None
    except OSError as error:
        raise RunFolderError(
            f"{run}: cannot be written ({error.strerror or error}); choose a writable folder"
        ) from error
    try:
        # Beside the lock, which on Windows nobody else can read.
        write_json(run / LOCK_HOLDER, {"process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        yield
    finally:
        (run / LOCK_HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(run: Path) -> str:
    try:
        holder = files.read_json(run / LOCK_HOLDER)
        return f"another run (process {holder['process']}, since {holder['since']})"
    except (OSError, ValueError, LookupError, TypeError):  # it has only just begun, or just ended
        return "another run"


def logged(
    path: Path, say: Callable[[str], object], shown: Callable[[str], str] = str, data: Path | None = None
) -> Callable[[str], object]:
    """Return a function that passes a line on to ``say``, as ``shown`` changes it for the screen,
    and also appends it to the file: with paths below ``data`` from there on, and without others
    that begin at a root."""
    above = f"{data}{os.sep}" if data else ""

    def say_and_keep(line: str) -> None:
        say(shown(line))
        with path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(without_paths(line.replace(above, "") if above else line) + "\n")

    return say_and_keep


def write_bytes(path: Path, content: bytes) -> None:
    """Write as ``files.write_bytes`` does. Raises RunFolderError."""
    with _told(path):
        files.write_bytes(path, content)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(path, error) from error


def failed(path: Path, error: OSError) -> RunFolderError:
    """Return the error for a file that cannot be written."""
    advice = (
        "free some space there"
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else "make sure that its folder exists and is writable"
    )
    kept = "; the previous version is unchanged" if path.exists() else ""
    return RunFolderError(
        f"{path}: cannot be written ({error.strerror or error}){kept}; {advice}, or choose another place with --runs"
    )


def write_text(path: Path, text: str) -> None:
    """Write as ``files.write_text`` does. Raises RunFolderError."""
    with _told(path):
        files.write_text(path, text)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write as ``files.write_json`` does. Raises RunFolderError."""
    with _told(path):
        files.write_json(path, values)


def write_private(run: Path, values: Mapping[str, str]) -> None:
    """Write the file of ``run`` that must not be passed on. Raises RunFolderError."""
    import tomli_w

    write_text(run / PRIVATE, _DO_NOT_SHARE + tomli_w.dumps(values))
    with suppress(OSError):  # a file system that knows no owners
        (run / PRIVATE).chmod(0o600)


def read_private(run: Path) -> dict[str, str] | None:
    """Read what ``write_private`` wrote; None where the file is not there. Raises RunFolderError
    where it is damaged."""
    path = run / PRIVATE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        if len(bytes.fromhex(values.get("key", ""))) > _LONGEST_KEY:
            raise ValueError("the key has too many digits")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:  # what is no TOML or no UTF-8 is a ValueError
        reason = error.strerror or error if isinstance(error, OSError) else error
        advice = "make it readable for this account" if isinstance(error, PermissionError) else "restore it"
        raise RunFolderError(f"{path}: cannot be read ({reason}); {advice}") from error
    return {name: str(value) for name, value in values.items()}


def data_of(run: Path) -> Path | None:
    """Return what ``run`` was trained on, as it was given then; None where its settings do not tell
    it, or are not there."""
    settings = _settings(run)
    data = (read_private(run) or {}).get("data", settings.get("data")) if settings else None
    if isinstance(data, str):
        return Path(data)
    return run / PHANTOM if settings.get("demo") is True else None


def setting_of(run: Path, name: str) -> str | None:
    """Return a setting of ``run`` that is text; None where it has none, or its settings cannot be
    read."""
    found = _settings(run).get(name)
    return found if isinstance(found, str) else None


def writer_of(run: Path) -> Writer | None:
    """Return what wrote the settings in ``run``: each writes one that the other does not have; None
    where they do not tell it, or cannot be read."""
    settings = _settings(run)
    return "pretraining" if "drawn" in settings else "training" if "demo" in settings else None


def folds_of(folder: Path) -> tuple[Path, ...]:
    """Return the runs of a cross-validation's folds, in their order; of any other folder none.
    Raises RunFolderError where its settings do not tell how many there are."""
    if not (folder / CROSSVAL).is_file():
        return ()
    count = _settings(folder, CROSSVAL).get("folds")
    if not isinstance(count, int) or not 2 <= count <= _MOST_FOLDS:
        raise RunFolderError(f"{folder / CROSSVAL}: does not tell how many folds there are; restore it")
    return tuple(folder / f"{FOLD}{fold}" for fold in range(count))


def _settings(run: Path, name: str = CONFIG) -> dict[str, Any]:
    try:
        return tomllib.loads((run / name).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):  # what is no TOML or no UTF-8 is a ValueError
        return {}


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV file as ``tables.table`` makes it, and as ``write_text`` does."""
    write_text(path, table(header, rows))
