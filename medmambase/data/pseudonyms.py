"""Give the patients of a run pseudonyms, so that its folder can be passed on.

A pseudonym is a keyed hash (BLAKE2b) of what the data calls a patient. The key is drawn anew for
each run and lies in a file of its own, ``do_not_share.toml``: whoever has it, and a list of
patients, finds who is who. Images are named by their place below the folder of the data.
"""

import csv
import hashlib
import os
import re
import secrets
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from medmambase.data.manifest.folders import Manifest, Sample
from medmambase.data.manifest.splits import ALLOWED
from medmambase.data.reading.images import Facts
from medmambase.privacy import PATH
from medmambase.run_folder import SPLITS, read_private
from medmambase.tables import of_cell

KEY = "key"  # in do_not_share.toml
PSEUDONYM = re.compile("p-[0-9a-f]{16}")


@dataclass(frozen=True)
class Pseudonyms:
    """What the files of a run call its patients and images. ``key``: 32 bytes; None leaves patients
    their names. ``places``: images that a table names by an absolute path get a shorter name."""

    key: bytes | None
    places: bool = True
    known: dict[str, str] = field(default_factory=dict, repr=False)  # pseudonym -> patient, for the screen

    @classmethod
    def new(cls, plain: bool = False) -> "Pseudonyms":
        """Return those of a new run; ``plain``: patients keep their names."""
        return cls(None if plain else secrets.token_bytes(32))

    @classmethod
    def of_run(cls, run: Path) -> "Pseudonyms | None":
        """Return those of a run that was started before, also by version 0.1.0, which had none.
        None: its patients have pseudonyms, and the file with the key is not there."""
        private = read_private(run)
        if private is not None:
            return cls(bytes.fromhex(private[KEY]) if KEY in private else None)
        rows = _rows(run / SPLITS)
        patients = {patient for _, patient in rows} - {""}
        if any(map(PSEUDONYM.fullmatch, patients)):
            return None
        return replace(cls.new(plain=bool(patients)), places=not any(PurePath(name).is_absolute() for name, _ in rows))

    def patient(self, name: str) -> str:
        """Return what a patient is called; "" is nobody known."""
        if self.key is None or not name:
            return name
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), key=self.key, digest_size=8)
        pseudonym = f"p-{digest.hexdigest()}"
        self.known[pseudonym] = name
        return pseudonym

    def shown(self, text: str) -> str:
        """Return text for the screen: with the patients' own names."""
        return PSEUDONYM.sub(lambda found: self.known.get(found[0], found[0]), text)

    def of_manifest(self, manifest: Manifest) -> Manifest:
        """Return the same images as the files of the run name them."""
        names = _places(manifest) if self.places else {}
        samples = (
            replace(sample, patient=self.patient(sample.patient), name=names.get(sample.name, sample.name))
            for sample in manifest.samples
        )
        notes = (
            f"patients are in more than one split: {ALLOWED}" if self.key and note.endswith(ALLOWED) else note
            for note in manifest.notes
        )
        return replace(manifest, samples=tuple(samples), notes=tuple(notes))

    def of_facts(self, facts: tuple[Facts, ...]) -> tuple[Facts, ...]:
        """Return the same facts with what the files of the run call the patient."""
        return tuple(replace(one, patient=self.patient(one.patient)) if one.patient else one for one in facts)


def place(path: Path, root: Path) -> str:
    """Return what the files of a run call a file of the data at ``root``, with slashes."""
    with suppress(ValueError):
        if path != root:
            return path.relative_to(root).as_posix()
    return path.name


def _places(manifest: Manifest) -> dict[str, str]:
    """Name -> shorter name, of images that a table names by an absolute path: below the table's
    folder, else below the folder that they share."""
    found: dict[str, str] = {}
    outside: defaultdict[str, list[Sample]] = defaultdict(list)  # by drive
    for sample in manifest.samples:
        if sample.row is None and (PurePath(sample.name).is_absolute() or sample.name.startswith("/")):
            if sample.path.is_relative_to(manifest.root):
                found[sample.name] = place(sample.path, manifest.root) + _mark(sample)
            else:
                outside[sample.path.anchor].append(sample)
    for drive, samples in outside.items():
        shared = Path(os.path.commonpath([sample.path.parent for sample in samples]))
        above = PATH if len(outside) == 1 else f"{PATH}/{re.sub(r'[^0-9A-Za-z]', '', drive)}"
        found |= {sample.name: f"{above}/{place(sample.path, shared)}{_mark(sample)}" for sample in samples}
    return found


def _mark(sample: Sample) -> str:
    """What the name of a frame has after that of its file."""
    return "" if sample.frame is None else sample.name[sample.name.rindex("#") :]


def _rows(path: Path) -> list[tuple[str, str]]:
    """Path and patient of each image in the file; empty where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [(of_cell(row.get("path") or ""), of_cell(row.get("patient") or "")) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
