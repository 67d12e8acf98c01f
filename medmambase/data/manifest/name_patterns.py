"""See in the names of images whose they may be, and propose a regular expression that finds it."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from medmambase.data.manifest.folders import Sample

# The first that fits wins: what says that it is a patient, who may have images of several classes;
# then a folder below the class, what stands before the last number, and what stands before the
# number of a frame (vid1_f081.png), of one class each.
SAY_SO = (
    r"(?i)(?:^|[/_ -])((?:patient|pat|subject|subj|sub|case|pid)[_ -]?\d+)",
    r"(?:^|[/_ -])([Pp]\d+)(?=[/_ .-])",
)
MAY_BE = (
    r"([^/]*\d[^/]*)/[^/]+$",
    r"([^/]*\d)[_ -]+[^/_ -]*\d+\.[^./]+$",
    r"([^/]+)[_ -](?i:f|fr|frame)[_ -]?\d+\.[^./]+$",
)
CLIP = MAY_BE[-1]
_SHARE = 0.9  # of the names, that a pattern must fit
_FEWEST = 3  # patients, and patients with several images, of which it is believed


@dataclass(frozen=True)
class Proposal:
    """A regular expression for ``--group-regex``, and what it finds: in ``images`` names so many
    ``patients``, in the name ``example`` the patient ``found``. ``clips``: it finds clips, of which
    one patient may have several."""

    regex: str
    images: int
    patients: int
    example: str
    found: str
    clips: bool = False


def propose(samples: Sequence[Sample]) -> Proposal | None:
    """Return a proposal where most names look alike in that way and several images would belong to
    one patient; None where nothing is seen, or patients are known."""
    if any(sample.patient for sample in samples) or any(sample.row is not None for sample in samples):
        return None
    for regex in (*SAY_SO, *MAY_BE):
        matches = [(sample.name, match) for sample in samples if (match := re.search(regex, sample.name))]
        images_of = Counter(match[1] for _, match in matches)
        labels_of = defaultdict(set)
        for sample in samples:
            if match := re.search(regex, sample.name):
                labels_of[match[1]].add(sample.label)
        several = sum(count > 1 for count in images_of.values())
        one_class = regex in SAY_SO or sum(len(labels) == 1 for labels in labels_of.values()) >= len(labels_of) / 2
        finer = regex in SAY_SO or len(images_of) > len({sample.label for sample in samples})  # folders may be classes
        if len(matches) >= _SHARE * len(samples) and several >= _FEWEST and one_class and finer:
            name, match = matches[0]
            shorter = _shorter(regex, match[1], samples)
            return Proposal(shorter, len(matches), len(images_of), name, match[1], regex == CLIP)
    return None


def _shorter(regex: str, example: str, samples: Sequence[Sample]) -> str:
    r"""An expression that a person reads at once, such as (patient\d+), if it finds the same in all
    names."""
    word = re.fullmatch(r"([A-Za-z]+[_ -]?)\d+", example)
    if not word:
        return regex
    simple = rf"({word[1]}\d+)"
    pairs = ((re.search(regex, sample.name), re.search(simple, sample.name)) for sample in samples)
    same = all((one and one[1]) == (other and other[1]) for one, other in pairs)
    return simple if same else regex
