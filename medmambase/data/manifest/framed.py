"""Make images of the frames of files that hold several."""

from dataclasses import replace

from medmambase.data.manifest.folders import Manifest
from medmambase.data.reading.frames import chosen, framed_name
from medmambase.data.reading.images import count_frames
from medmambase.plural import count_of


def framed(found: Manifest, wish: str) -> Manifest:
    """Return the images with the frames that ``wish`` chooses, as ``frames.chosen`` takes it, in
    the place of each file with several frames.

    The frames of a file are those of one patient: of the file's, and where nobody knows that, of
    one who is named like the file.
    """
    if wish == "first":
        return found
    samples, files, nobody = [], 0, 0
    for sample in found.samples:
        count = 1 if sample.row is not None else count_frames(sample.path)
        if count < 2:
            samples.append(sample)
            continue
        files += 1
        taken = chosen(wish, count)
        patient = sample.patient or (sample.name if len(taken) > 1 else "")
        nobody += patient != sample.patient
        samples += [
            replace(sample, name=framed_name(sample.name, frame, count), frame=frame, patient=patient)
            for frame in taken
        ]
    notes = found.notes
    if files:
        images = len(samples) - len(found.samples) + files
        told = f"{count_of(images, 'frame', 'frames')} of {count_of(files, 'file', 'files')} with several are images"
        if nobody:
            whose = "of it" if files == 1 else f"of {nobody} of these files"
            told += f"; nobody knows the patient {whose}, so the frames of a file count as one patient"
        notes += (told,)
    return replace(found, samples=tuple(samples), notes=notes)
