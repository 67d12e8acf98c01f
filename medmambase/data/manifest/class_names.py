"""Give classes other names, such as words in place of the numbers that folders are called by."""

import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from medmambase.config import ConfigError
from medmambase.data.manifest.folders import Manifest


def renamed(found: Manifest, wish: str) -> Manifest:
    """Return the images with the class names of ``wish``, such as "0=malignant,1=benign". Classes
    that it does not name keep their names, all keep their order, and a note says what was renamed.

    Both names of a pair may contain commas. Raises ConfigError where ``wish`` is no list of pairs,
    names a class that the data do not have, or would give two classes one name.
    """
    known = "|".join(map(re.escape, found.classes))
    before, *pairs = re.split(rf"(?:^|,)\s*({known})=", wish)
    old, new = pairs[::2], [name.strip() for name in pairs[1::2]]
    if before.strip() or not old or not all(new) or any("=" in name for name in new):
        raise ConfigError(
            f"--class-names is {wish!r}; wanted CLASS=NAME, several with commas between them, for classes of the data, "
            f"which has {', '.join(map(repr, found.classes))}: such as {found.classes[0]}=malignant"
        )
    if len(set(old)) < len(old):
        raise ConfigError(f"--class-names is {wish!r}, which names a class twice; name each class once")
    names = dict(zip(old, new, strict=True))
    classes = tuple(names.get(name, name) for name in found.classes)
    same = [name for name in classes if classes.count(name) > 1]
    if same:
        raise ConfigError(
            f"--class-names is {wish!r}, which calls two classes {same[0]!r}; give each class a name of its own"
        )
    told = ", ".join(f"{one} is called {other}" for one, other in names.items())
    return replace(found, classes=classes, notes=(*found.notes, f"classes renamed: {told}"))


def advice(found: Manifest, unknown: Sequence[str], known: Sequence[str], given: str | None, own: str | None) -> str:
    """Say how images whose classes are ``unknown`` to a network get the names that it has
    (``known``).

    ``given``: the ``--class-names`` by which the classes of ``found`` have their names already;
    ``own``: those that the network was trained with.
    """
    left = [one for one in known if one not in found.classes]
    if given is not None and any(re.search(rf"=\s*{re.escape(name)}\s*(?:,|$)", given) for name in unknown):
        return f"--class-names is {given!r}: what stands behind each = must be a class of the network; correct it"
    if given is None and own is not None:
        with suppress(ConfigError):  # other folders than it was trained on
            if set(renamed(found, own).classes) <= set(known):
                return f"it was trained with --class-names {_quoted(own)}: give the same here"
    only = left if len(unknown) == len(left) == 1 else []
    meant: list[str] = []
    for name in unknown:  # no two classes can have one name
        free = [one for one in left if one not in meant]
        meant.append(next(iter(difflib.get_close_matches(name, free, n=1) or only), "NAME"))
    pairs = ([] if given is None else [given]) + [f"{name}={other}" for name, other in zip(unknown, meant, strict=True)]
    what = "where NAME is what the network calls the class" if "NAME" in meant else "if that is what they are"
    return f"give --class-names {_quoted(','.join(pairs))}, {what}"


def _quoted(word: str) -> str:
    """As every shell takes it: in double quotes, where a character may mean something to one."""
    return word if re.fullmatch(r"[\w=,.+-]+", word) else f'"{word}"'
