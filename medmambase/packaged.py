"""The weights that come with this package, learned from drawn pictures alone, and what is asked for
by the words of ``--start``.

They lie in ``weights/``: for each network a file for ``model/starting.py``, with its model card,
the settings that ``medmambase-pretrain --config`` takes, and the log of the pretraining.
``tools/drawn_weights.py`` makes them.
"""

from pathlib import Path
from typing import Any

from medmambase.config import PRESETS, ConfigError, TrainConfig
from medmambase.validation import nearest

NONE, DRAWN, AUTO = "none", "drawn", "auto"
WORDS = (NONE, DRAWN, AUTO)  # values of start that are no path
START = AUTO  # what a training starts from where nobody says it; docs/results.md has the evidence
USUAL = "nano"  # the network of DRAWN where nobody names one
FOLDER = Path(__file__).with_name("weights")
LICENCE = "MIT licence"


def usual(recipe: str) -> str:
    """Return the network that a recipe trains where nobody names one: that of the drawn weights, or
    with a recipe of others one as large as theirs."""
    return USUAL if recipe == TrainConfig().recipe else "tiny"


def path_of(model: str) -> Path:
    """Return where the weights of a network lie, if there are any."""
    return FOLDER / f"{model}-{DRAWN}.safetensors"


def models() -> tuple[str, ...]:
    """Return the networks that there are weights for, the smallest first."""
    return tuple(model for model in PRESETS if path_of(model).is_file())


def names() -> dict[str, Path]:
    """Return the weights that there are, by the names that ``MedMambaSE.from_pretrained`` takes."""
    return {path_of(model).stem: path_of(model) for model in models()}


def settled(start: str, model: str | None, usual: str, *, as_named: bool) -> tuple[str, Any]:
    """Return what AUTO comes to, any other ``start`` as it is, and the network: for DRAWN the USUAL
    one where nobody names one, without weights the ``usual`` one, and None where weights define it.
    ``as_named``: whether the network has the shape that its name stands for."""
    if start == AUTO:
        model = model or usual
        return (DRAWN if as_named and model in models() else NONE), model
    return start, model or {DRAWN: USUAL, NONE: usual}.get(start)


def weights_of(start: str, model: str | None) -> str | None:
    """Return the path of the weights to start from; None for new ones."""
    if start == DRAWN:
        return str(path_of(model or USUAL))
    return None if start in WORDS else start


def check(start: str, model: str | None, shown: str) -> None:
    """Raise ConfigError where there are no weights for the network; ``shown``: where ``start``
    comes from."""
    if start != DRAWN or (model or USUAL) in models():
        return
    if not models():
        raise ConfigError(
            f"{shown} is {DRAWN!r}, and no weights come with this version; make them with medmambase-pretrain "
            f"--drawn and give their folder, or give ./{DRAWN} for a file of that name"
        )
    own = f", or learn others (medmambase-pretrain --drawn --model {model}) and give their folder"
    raise ConfigError(
        f"{shown} is {DRAWN!r}, and no weights for {model} come with this version, only for {' and '.join(models())}; "
        f"choose one of these with --model{own if model in PRESETS else ', or leave out --start'}"
    )


def notes(given: str) -> list[str]:
    """Return a note where what was ``given``, DRAWN or one of ``names``, is also that of a file or
    folder here, which could have been meant."""
    if given not in (DRAWN, *names()) or not Path(given).exists():
        return []
    other = "folder" if Path(given).is_dir() else "file"
    return [
        f"note: {given!r} takes the weights that come with medmambase, not the {other} of that name in the current "
        f"folder; give './{given}' for that"
    ]


def hint(name: str) -> str:
    """Return what to say where there is no file of the name: which of the weights that come with
    this version was most likely meant."""
    if not names():
        return "and no weights come with this version"
    close = nearest(name, names())
    return (
        f"and the nearest of the weights that come with this version is {close!r} (--start {DRAWN} --model "
        f"{close.removesuffix(f'-{DRAWN}')})"
    )
