"""Find the patient in the names of images with a regular expression that a person wrote.

Some expressions take longer than anybody lives, and Python cannot interrupt its own matching: so
another process does it, which can be ended.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO

from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError, Manifest, Sample, image_files
from medmambase.data.reading.dicom import patient_of
from medmambase.plural import count_of

LIMIT = 10.0  # seconds for one name; it takes microseconds
_START = 120.0  # seconds until the process is ready
_WORKER = """
import json, re, sys
pattern = re.compile(json.loads(sys.stdin.readline()))
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    found = pattern.search(json.loads(line))
    print(json.dumps("" if not found else (found[1] if pattern.groups else found[0]) or ""), flush=True)
"""


def patients_of(source: Path, group_regex: str) -> dict[str, str]:
    """Return the patient that ``group_regex`` finds in the name of each image file below a folder
    (or of a file alone), where it finds one: the name below the folder -> the patient. Raises what
    ``grouped`` raises."""
    if not source.exists():
        return {}
    root = source if source.is_dir() else source.parent
    names = [(path, path.relative_to(root).as_posix()) for path in image_files(source)]
    found = Manifest(source, (), tuple(Sample(path, 0, "test", name) for path, name in names), ())
    return {sample.name: sample.patient for sample in grouped(found, group_regex).samples if sample.patient}


def grouped(found: Manifest, group_regex: str) -> Manifest:
    """Return the images with the patient that ``group_regex`` finds in each name: its first group,
    or without groups all that it matches. Where it finds none, patients are as before, or as
    ``told_by_files`` finds them.

    Raises ConfigError for what is no regular expression, and DataError where it finds nothing in
    any name, or takes longer than LIMIT for one.
    """
    if not found.samples:
        return found
    try:
        re.compile(group_regex)  # what is no expression is an error here, not in the other process
    except re.error as error:
        raise ConfigError(
            f"--group-regex is {group_regex!r}, which is not a valid regular expression ({error}); an example: "
            f"'(patient\\d+)'"
        ) from error
    names = [sample.name for sample in found.samples]
    patients = _matched(found, group_regex, names)
    unknown = [name for name, patient in zip(names, patients, strict=True) if not patient]
    if len(unknown) == len(names):
        raise DataError(
            f"{found.root}: --group-regex {group_regex!r} finds nothing in any of {len(names)} names, such as "
            f"{unknown[0]}"
        )
    samples = (
        replace(sample, patient=patient or sample.patient)
        for sample, patient in zip(found.samples, patients, strict=True)
    )
    found, notes = told_by_files(replace(found, samples=tuple(samples))), found.notes
    if unknown:
        named = sum(
            not patient and bool(sample.patient) for patient, sample in zip(patients, found.samples, strict=True)
        )
        said = f"--group-regex finds no patient in {count_of(len(unknown), 'name')}, such as {unknown[0]}: "
        if named:
            have = count_of(named, "of these images has", "of these images have")
            told = f"{have} the patient that a table or a DICOM file names"
            rest = ", and each of the others counts as a patient of its own" if named < len(unknown) else ""
            notes += (f"{said}{told}{rest}",)
        else:
            each = "this image" if len(unknown) == 1 else "each of these images"
            notes += (f"{said}{each} counts as a patient of its own",)
    return replace(found, notes=notes + _doubtful([patient for patient in patients if patient]))


def _doubtful(patients: Sequence[str]) -> tuple[str, ...]:
    """Say where the patients found in names are all the same, or none has two images."""
    images, there = len(patients), len(set(patients))
    if images == 1 or there not in (1, images):
        return ()
    every = "both" if images == 2 else f"all {images}"
    what = f"the same patient, {patients[0]!r}, in {every}" if there == 1 else f"another patient in each of {images}"
    but = "these images are of several patients" if there == 1 else "a patient has several images"
    return (f"--group-regex finds {what} names that it fits: if {but}, it finds the wrong part of a name",)


def told_by_files(found: Manifest) -> Manifest:
    """Return the images with the patients that DICOM files tell, where nothing else does."""
    samples = (
        replace(sample, patient=patient_of(sample.path))
        if not sample.patient and sample.path.suffix.casefold() in ("", ".dcm", ".dicom")
        else sample
        for sample in found.samples
    )
    return replace(found, samples=tuple(samples))


def _matched(found: Manifest, group_regex: str, names: Sequence[str]) -> list[str]:
    """The patient in each name, "" where there is none."""
    lines = "".join(f"{json.dumps(word)}\n" for word in (group_regex, *names))
    answers: SimpleQueue[str] = SimpleQueue()
    patients: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # Ctrl-C reaches it too, and one traceback is one too many
        encoding="ascii",
    ) as worker:
        assert worker.stdin and worker.stdout
        threads = [
            Thread(target=_ask, args=(worker.stdin, lines), daemon=True),
            Thread(target=_hear, args=(worker.stdout, answers), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            _answer(answers, _START)
            patients.extend(_answer(answers, LIMIT) for _ in names)
        except Empty as error:
            raise DataError(
                f"{found.root}: --group-regex {group_regex!r} does not come to an end within {LIMIT:g} s on "
                f"{names[len(patients)]}; avoid a repetition inside a repetition, such as (a+)+"
            ) from error
        finally:
            worker.kill()
            for thread in threads:
                thread.join()
    return patients


def _answer(answers: SimpleQueue[str], seconds: float) -> str:
    """The next line of the other process. Raises Empty after so many seconds."""
    line = answers.get(timeout=seconds)
    if not line:
        raise DataError("the process that looks for patients in names has ended; start again, or give a CSV")
    text: str = json.loads(line)
    return text


def _ask(stdin: IO[str], lines: str) -> None:
    with suppress(OSError), stdin:  # the process may have been ended
        stdin.write(lines)


def _hear(stdout: IO[str], answers: SimpleQueue[str]) -> None:
    for line in stdout:
        answers.put(line)
    answers.put("")
