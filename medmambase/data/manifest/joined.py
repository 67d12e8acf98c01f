"""Join patients whose images are duplicates of each other, so that no split separates them."""

from collections.abc import Callable, Sequence

from medmambase.data.manifest.folders import Sample

# Finds groups of duplicates among images: the names of each.
Duplicates = Callable[[Sequence[Sample]], Sequence[Sequence[str]]]


def joined(patient_of: dict[str, str], groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return for each image, by name, the patient who stands for all that must stay together:
    everybody linked by a group of duplicates, directly or through others.

    ``patient_of``: whose image each is. It is the first of them by name, whatever the order.
    """
    first = {patient: patient for patient in patient_of.values()}

    def found(patient: str) -> str:
        while first[patient] != patient:
            first[patient] = patient = first[first[patient]]
        return patient

    for group in groups:
        least, *others = sorted({found(patient_of[name]) for name in group})
        first |= dict.fromkeys(others, least)
    return {name: found(patient) for name, patient in patient_of.items()}
