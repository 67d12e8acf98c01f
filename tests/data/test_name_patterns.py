"""A proposal for ``--group-regex``: made where names tell patients, and not where they do not."""

import re
from pathlib import Path

import pytest

from medmambase.data.manifest.folders import Sample
from medmambase.data.manifest.name_patterns import SAY_SO, propose


def samples(names: list[str]) -> list[Sample]:
    classes = sorted({name.removeprefix("train/").partition("/")[0] for name in names})
    labels = [classes.index(name.removeprefix("train/").partition("/")[0]) for name in names]
    return [Sample(Path(name), label, "train", name) for name, label in zip(names, labels, strict=True)]


CLIPS = ("Cov-Atlas--44-", "Cov-suspected", "Reg_Avi_Image8", "Reg-lungcurtain")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([f"{c}/patient{10 * k + p}_{n:03}.png" for k, c in enumerate("ab") for p in range(4) for n in range(3)], 8),
        ([f"{c}/p{k}{p:03}_{n:02}.png" for k, c in enumerate("ab") for p in range(4) for n in range(3)], 8),
        ([f"{c}/p{p:02}_{n}.png" for n, c in enumerate("abc") for p in range(9)], 9),  # of several classes each
        ([f"{c}/scan {k}{p}/im {n}.png" for k, c in enumerate("ab") for p in range(4) for n in range(3)], 8),
        ([f"{c}/{k}{p}_f{n:03}.png" for k, c in ((w, w[0]) for w in CLIPS) for p in "ab" for n in range(3)], 8),
        ([f"{c}/{k} Frame-{n}.png" for k, c in ((w, w[0]) for w in CLIPS) for n in range(3)], 4),
        ([f"{c}/A{k}7{p}-{n}.png" for k, c in enumerate("ab") for p in range(4) for n in range(3)], 8),
    ],
)
def test_names_that_tell_patients_are_seen(names: list[str], found: int) -> None:
    proposal = propose(samples(names))
    assert proposal is not None and (proposal.patients, proposal.images) == (found, len(names))
    matches = [re.search(proposal.regex, name) for name in names]
    assert len({match[1] for match in matches if match}) == found and proposal.found in proposal.example


@pytest.mark.parametrize(
    ("names", "regex"),
    [
        ([f"{c}/patient{p}_{n}.png" for c in "ab" for p in range(4) for n in range(3)], r"(patient\d+)"),
        ([f"{c}/p{p:03}_{n}.png" for c in "ab" for p in range(4) for n in range(3)], r"(p\d+)"),
        ([f"{c}/Patient-{p}/{n}.png" for c in "ab" for p in range(4) for n in range(3)], r"(Patient-\d+)"),
        ([f"step{n}/p{p:03}_{n}.png" for p in range(4) for n in range(3)], SAY_SO[1]),  # (p\d+) would find step0
    ],
)
def test_the_simplest_expression_that_finds_the_same_is_proposed(names: list[str], regex: str) -> None:
    proposal = propose(samples(names))
    assert proposal is not None and proposal.regex == regex


@pytest.mark.parametrize(
    "names",
    [
        [f"{c}/{c} ({n}).png" for c in ("benign", "normal") for n in range(30)],
        [f"{c}/IMG_{n:04}.png" for c in "ab" for n in range(30)],
        [f"{c}/patient{k}{n}.png" for k, c in enumerate("ab") for n in range(30)],  # one image each: nothing to keep
        [f"train/{c}/{n}.png" for c in "0123" for n in range(30)],  # folders of classes, not of patients
        [f"{c}/{10 + p}_{n}.png" for c in "ab" for p in range(9) for n in range(2)],  # the same numbers in both
        [f"{c}/img_f{n:03}.png" for c in "ab" for n in range(30)],  # one clip in two classes
        [f"{c}/{w}_f{n}.png" for c in "ab" for w in CLIPS for n in range(3)],  # each clip in both
        ["a/x.png", "b/y.png"],
    ],
)
def test_names_that_tell_nobody_give_no_proposal(names: list[str]) -> None:
    assert propose(samples(names)) is None


def test_clips_are_told_apart_from_patients() -> None:
    clips, patients = (
        propose(samples([f"{w[0]}/{w}{end}{n}.png" for w in CLIPS for n in range(3)])) for end in ("_f", "_p7_")
    )
    assert clips is not None and clips.clips and patients is not None and not patients.clips


def test_where_patients_are_known_nothing_is_proposed() -> None:
    known = [Sample(s.path, s.label, s.split, s.name, "someone") for s in samples(["a/p01_1.png", "b/p02_1.png"] * 9)]
    assert propose(known) is None
