"""Give classes other names, such as words in place of the numbers that folders are called by."""

import re
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
