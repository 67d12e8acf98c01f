"""Say in which settings the two sides of a comparison differ, and which of their runs are one
training twice."""

from collections.abc import Sequence
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

from medmambase.config import CHANGE_NO_RESULT, ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.evaluation.predictions import Predictions
from medmambase.inference.held_out import rows_of
from medmambase.privacy import last_name, names_folders
from medmambase.run_folder import CONFIG, CROSSVAL, IMAGES, LAST, PREDICTIONS, PRIVATE, TEST, RunFolderError, setting_of
from medmambase.settings import TYPES, resolve

_DATA = ("data", "demo")  # where images come from, which is no difference where they are the same
_PATHS = ("data", "splits", "start", "soft_labels")  # which a folder that was passed on may not tell
_OF_FILES = ("runs", "name", "plain_patients", *CHANGE_NO_RESULT)  # no result depends on them


def table_of(path: Path) -> Path:
    """Return the table of predictions of a run; of a table, itself."""
    return path if path.is_file() else path / TEST / PREDICTIONS


def _run_of(path: Path) -> Path:
    """The folder of a run, also of its table; of any other table the folder above its own."""
    return table_of(path).resolve().parent.parent


def name_of(path: Path) -> str:
    """Return what a run, or a table, is called where no other folder may be told of."""
    whole = path.resolve()
    of_a_run = whole.name == PREDICTIONS and whole.parent.name == TEST
    return last_name(str(whole.parents[1] if of_a_run else whole))


def refuse_twice(sides: Sequence[Sequence[Path]]) -> None:
    """Raise ConfigError for a run that is given twice, be it once as its table."""
    met: set[Path] = set()
    for path in (path for side in sides for path in side):
        table = table_of(path).resolve()
        if table in met:
            raise ConfigError(
                f"{path} is given twice, and would count as two trainings; give each run once, on one side"
            )
        met.add(table)


def differences(sides: Sequence[Sequence[Path]]) -> dict[str, tuple[list[str], list[str]]] | None:
    """Return each setting in which the sides differ, with its values on either; None where the
    settings of a run are not known. Where the data lie is none if the images are the same."""
    known = [[_settings(path) for path in side] for side in sides]
    told = [[one and {name: _shown(name, value) for name, value in one.items()} for one in side] for side in known]
    found = {}
    for name in TYPES:
        values: list[list[str]] = []
        for side in told:
            if not all(side):
                return None
            values.append(sorted({one[name] for one in side if one and name in one}, key=_in_order))
        unknown = any(one and name not in one for side in told for one in side)
        if name == "split_seed" and len({_seed_of_splits(one) for side in known for one in side if one}) == 1:
            continue  # one side names the seed of its splits, and the other has it for all
        if values[0] != values[1] and not unknown:
            found[name] = (values[0], values[1])
    if found.keys() & {*_DATA} and _learned_from_the_same(sides):
        found = {name: values for name, values in found.items() if name not in _DATA}
    return found


def _learned_from_the_same(sides: Sequence[Sequence[Path]]) -> bool:
    """Whether the pixels of train and val, by their hashes, are the same in all runs, wherever the
    images lay: in a folder, or drawn for the run."""
    runs = [_run_of(path) for side in sides for path in side]
    try:
        found = [
            [rows_of(run / LAST / IMAGES, "pixels", {"split": split}) for split in ("train", "val")] for run in runs
        ]
    except DataError:  # a damaged list: it is not known
        return False
    return bool(found[0][0]) and all(one == found[0] for one in found)  # a run may have no val


def in_words(found: dict[str, tuple[list[str], list[str]]] | None) -> str:
    """Return what ``differences`` found as one line."""
    if found is None:
        return "what A and B differ in is not known: not every run has its settings beside its predictions"
    if not found:
        return "A and B differ in none of the settings that their folders tell"
    if found.keys() == {"seed"}:
        seeds = " / ".join(", ".join(values) for values in found["seed"])
        return f"A and B are seeds of the same settings, as far as their folders tell: seed {seeds}"
    listed = "; ".join(f"{name} {' / '.join(', '.join(values) for values in pair)}" for name, pair in found.items())
    return f"A and B differ in: {listed}"


def vary_in(sides: Sequence[Sequence[Path]]) -> str:
    """Return what the runs of a side vary in: "seeds" where, on each side, the seeds are known and
    no two are the same, else "runs"."""
    for side in sides:
        known = [settings["seed"] if (settings := _settings(path)) else None for path in side]
        if len(side) > 1 and (None in known or len(set(known)) < len(known)):
            return "runs"
    return "seeds"


def same_training(sides: Sequence[Sequence[Path]], predictions: Sequence[Sequence[Predictions]]) -> list[str]:
    """Return a note for each two runs of a side that are one training twice by their settings, or
    may be by what they predict. ``predictions``: those of the runs, in one order of images and
    classes."""
    notes = []
    for paths, tables in zip(sides, predictions, strict=True):
        runs = zip(paths, tables, map(_settings, paths), strict=True)
        for (path, table, settings), (other, again, others) in combinations(runs, 2):
            both = f"{name_of(path)} and {name_of(other)} have the same"
            if settings and settings == others:
                notes.append(
                    f"{both} seed and settings: they are one training and count as two, so the intervals are too "
                    f"narrow; leave one of them out"
                )
            elif table.probabilities.tobytes() == again.probabilities.tobytes():  # of two trainings that are sure, too
                notes.append(
                    f"{both} predictions, to the last digit: if they are one training, it counts as two, and the "
                    f"intervals are too narrow; then leave one of them out"
                )
    return notes


def same_across(sides: Sequence[Sequence[Path]], predictions: Sequence[Sequence[Predictions]]) -> list[str]:
    """Return a note for each run of the first side that is one training, or one network, with a
    run of the second, or one of the networks of a cross-validation there; the arguments are those
    of ``same_training``."""
    notes = []
    firsts, seconds = (
        list(zip(paths, tables, map(_settings, paths), strict=True))
        for paths, tables in zip(sides, predictions, strict=True)
    )
    for (path, table, settings), (other, again, others) in product(firsts, seconds):
        for (one, side), (fold, of) in permutations(((path, "A"), (other, "B"))):
            if _run_of(one) == _run_of(fold).parent and (_run_of(one) / CROSSVAL).is_file():
                notes.append(
                    f"{name_of(fold)} of {of} is part of the cross-validation {name_of(one)} of {side}: what is found "
                    f"is how its network differs from all of them together, not from others"
                )
        both = f"{name_of(path)} of A and {name_of(other)} of B have the same"
        if settings and settings == others:
            notes.append(f"{both} seed and settings: they are one training, and are compared with each other")
        elif table.probabilities.tobytes() == again.probabilities.tobytes():
            notes.append(f"{both} predictions, to the last digit: they seem to be one network")
    return notes


def calibrated_alone(sides: Sequence[Sequence[Path]]) -> list[str]:
    """Return a note where only some of what is compared are cross-validations, whose predictions
    are calibrated, fold by fold."""
    whole = [path for side in sides for path in side if (_run_of(path) / CROSSVAL).is_file()]
    if len(whole) in (0, sum(map(len, sides))):
        return []
    return [
        f"the probabilities of {name_of(whole[0])}, a cross-validation, are calibrated, and those of a single run are "
        f"not: its Brier score and calibration error may be lower for that reason alone"
    ]


def _seed_of_splits(settings: dict[str, Any]) -> object:
    return settings["seed"] if settings["split_seed"] is None else settings["split_seed"]


def _settings(path: Path) -> dict[str, Any] | None:
    """The settings of a run, or of the run whose table this is, that its network depends on; None
    where they cannot be read."""
    table, run = table_of(path).resolve(), _run_of(path)
    file = next((name for name in (CONFIG, CROSSVAL) if (run / name).is_file()), None)
    if file is None or table != run / TEST / PREDICTIONS:
        return None
    try:
        settings = resolve({}, run / file)
    except (ConfigError, RunFolderError):
        return None
    told = [] if (run / PRIVATE).is_file() else [*_PATHS, "model"]  # which is not set where weights define it
    hidden = [name for name in told if setting_of(run, name) is None]
    names = [name for name in TYPES if name not in _OF_FILES and name not in hidden]
    return {name: settings.value(name) for name in names}


def _shown(name: str, value: object) -> str:
    """A setting's value; of a path that tells of folders above the data its last name, and so of
    the data, which may lie elsewhere on another machine."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    text = str(value)
    return last_name(text) if name in _PATHS and (name == "data" or names_folders(text)) else text


def _in_order(value: str) -> tuple[float, str]:
    """Numbers by their size, then words."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
