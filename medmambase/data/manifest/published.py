"""Read published data sets as they are downloaded: MedMNIST's .npz files of any size, and the
FETAL_PLANES_DB folder."""

import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL.Image import DecompressionBombError

from medmambase.data.manifest import multi_label
from medmambase.data.manifest.csv_table import manifest_of
from medmambase.data.manifest.folders import SPLITS, DataError, Manifest, Sample
from medmambase.data.manifest.labels import Label
from medmambase.data.reading.images import MAX_PIXELS, ImageError, room_for

FETAL_PLANES = "FETAL_PLANES_DB_data.csv"
_FETAL_COLUMNS = ("image_name", "patient_num", "plane", "train")
_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
# What MedMNIST's labels mean, by the name of the file without its size.
CLASSES = {
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
        "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": ("basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte",
    "neutrophil", "platelet"), "tissuemnist": (
        "collecting duct, connecting tubule", "distal convoluted tubule", "glomerular endothelial cells",
        "interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments", "thick ascending limb",
    ),
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
    "organamnist": _ORGANS, "organcmnist": _ORGANS, "organsmnist": _ORGANS,
}  # fmt: skip  # one set a paragraph
_MOST_BYTES = 20_000_000_000  # of pictures of one split; the largest that is published has 13.5 GB
_MOST_LABELS = 10_000_000
_KEYS = tuple(f"{split}_{what}" for split in SPLITS for what in ("images", "labels"))
_AHEAD = 64  # rows that were passed over and are kept: threads ask for them nearly in order
_PART = 2**20  # bytes that are unpacked at a time
_arrays: dict[tuple[Path, str], "_Rows"] = {}
_lock = threading.Lock()


def read_medmnist(path: Path) -> Manifest:
    """Read the images of a MedMNIST file and their official split; each is named ``<split>/<row>``.
    Several labels an image, of 0 and 1, are the classes that it has. Raises DataError."""
    samples: list[Sample] = []
    widths, ends = set[int](), dict[str, int]()
    for split in SPLITS:
        shape, _, dtype = _header(path, f"{split}_images")
        if dtype != np.uint8 or np.prod(shape, dtype=object) > _MOST_BYTES:
            raise DataError(
                f"{path}: {split}_images is {dtype} {shape}; wanted 8-bit pictures (uint8), {_MOST_BYTES / 1e9:.0f} "
                f"GB of them at most"
            )
        listed, *_ = _header(path, f"{split}_labels")
        if len(shape) > 2 and shape[1] * shape[2] > MAX_PIXELS:
            raise DataError(
                f"{path}: {split}_images has shape {shape}; wanted pictures of {MAX_PIXELS // 1_000_000} million "
                f"pixels at most"
            )
        if len(listed) not in (1, 2) or np.prod(listed, dtype=object) > _MOST_LABELS:
            raise DataError(
                f"{path}: {split}_labels has shape {listed}; wanted one class for each image, or 0 or 1 for each class"
            )
        labels = _array(path, f"{split}_labels")
        many = labels.shape[1] if labels.ndim == 2 else 1
        widths.add(many)
        if not many or len(widths) > 1:
            raise DataError(
                f"{path}: {split}_labels has shape {labels.shape}; wanted a class for each image, or in each split as "
                f"many answers of 0 or 1, one for each class that an image may have"
            )
        if many > 1 and not np.isin(labels, (0, 1)).all():
            raise DataError(
                f"{path}: {split}_labels has {many} answers for each image, and holds {labels.max()}; wanted 0 or 1 "
                f"for each class that an image may have"
            )
        if labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
            raise DataError(
                f"{path}: {split}_labels is {labels.dtype} {labels.shape}; wanted whole numbers from 0 on, one for "
                f"each image"
            )
        if len(shape) == 4 and shape[3] not in (1, 3):
            raise DataError(
                f"{path}: {split}_images has shape {shape}: volumes; wanted pictures (n, height, width) or (n, "
                f"height, width, 3)"
            )
        if len(shape) in (3, 4) and 0 in shape[1:]:
            raise DataError(f"{path}: {split}_images has shape {shape}: pictures without pixels; download it again")
        if len(shape) not in (3, 4) or shape[0] != len(labels):
            raise DataError(
                f"{path}: {split}_images has shape {shape} and {split}_labels {labels.shape}; wanted as many "
                f"pictures as labels"
            )
        ends |= {split: int(labels.max())} if labels.size else {}
        given: list[Label] = [*map(tuple, labels.tolist())] if many > 1 else labels.ravel().tolist()
        samples += [Sample(path, label, split, f"{split}/{row:06d}", "", row) for row, label in enumerate(given)]
    several = max(widths)
    if several > 1:
        classes = _names_of(path, several)
        return multi_label.checked(path, Manifest(path, classes, tuple(samples), (multi_label.note(classes),)))
    split, highest = max(ends.items(), key=lambda end: end[1], default=("train", 0))
    if highest >= max(1, len(samples)):  # so many names of classes would fill the memory
        raise DataError(
            f"{path}: {split}_labels holds {highest}; wanted the numbers of classes from 0 on, below the "
            f"number of images, {len(samples)}"
        )
    classes = _names_of(path, 1 + highest)
    return multi_label.checked(path, Manifest(path, classes, tuple(samples), ()))


def _names_of(path: Path, count: int) -> tuple[str, ...]:
    known = CLASSES.get(re.sub(r"_\d+$", "", path.stem.casefold()), ())
    return known if len(known) == count else tuple(map(str, range(count)))


def pixels_of(sample: Sample) -> npt.NDArray[np.uint8]:
    """Return the pixels of a sample that is a row of a file, uint8 (h, w) or (h, w, 3).

    Rows that are asked for in order, as to decode them, are unpacked one by one; in any other order
    all rows of the split are in memory until ``forget``. Raises ImageError.
    """
    assert sample.row is not None
    try:
        image = _rows(sample).row(sample.row)
    except DataError as error:
        raise ImageError(sample.path, str(error).removeprefix(f"{sample.path}: ")) from error
    return image[..., 0] if image.shape[2:] == (1,) else image


def room_of(sample: Sample) -> AbstractContextManager[object]:
    """Return what to enter while the pixels of a sample are in use: of large rows of a file only
    one is unpacked at a time. Raises ImageError."""
    if sample.row is None:
        return nullcontext()
    try:
        _, height, width, *_ = (*_rows(sample).shape, 1, 1, 1)
        return room_for(width, height)
    except DataError:
        return nullcontext()  # pixels_of says what is wrong
    except DecompressionBombError as error:  # the file has changed since its header was read
        raise ImageError(sample.path, f"more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller") from error


def forget() -> None:
    """Free the memory of the files that were read."""
    with _lock:
        for rows in _arrays.values():
            rows.close()
        _arrays.clear()


def _rows(sample: Sample) -> "_Rows":
    """The rows of the split that a sample is in. Raises DataError."""
    key = sample.path, sample.name.partition("/")[0]
    with _lock:
        if key not in _arrays:
            _arrays[key] = _Rows(sample.path, f"{key[1]}_images")
        return _arrays[key]


class _Rows:
    """The rows of one array of a file, from any number of threads."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.shape, self.by_columns, self.dtype = _header(path, key)
        self.bytes = int(np.prod(self.shape[1:], dtype=object))
        self.lock = threading.Lock()
        self.whole: npt.NDArray[np.uint8] | None = None
        self.passed: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()
        self.next = 0
        with _told(path, key), zipfile.ZipFile(path) as file, file.open(f"{key}.npy") as stream:
            while stream.read(_PART):  # at its end the checksum is compared: later it would be too late
                pass
        self.file: zipfile.ZipFile | None = None
        self.stream: IO[bytes] | None = None

    def row(self, number: int) -> npt.NDArray[np.uint8]:
        """uint8 (h, w) or (h, w, channels). Raises DataError."""
        if len(self.shape) < 3 or number >= self.shape[0] or self.dtype != np.uint8:
            raise DataError(f"{self.path}: {self.key} is {self.dtype} {self.shape}, without row {number} in 8 bits")
        with self.lock, _told(self.path, self.key):
            if number in self.passed:
                return self.passed.pop(number)
            if self.whole is None and (number < self.next or self.by_columns):
                self.whole = _array(self.path, self.key)
                self.close()
            if self.whole is not None:
                return self.whole[number]
            while self.next < number:
                passed = self.next
                self.passed[passed] = self._unpacked()
                if len(self.passed) > _AHEAD:
                    self.passed.popitem(last=False)
            return self._unpacked()

    def _unpacked(self) -> npt.NDArray[np.uint8]:
        """The next row."""
        if self.stream is None:
            self.file = zipfile.ZipFile(self.path)
            self.stream = self.file.open(f"{self.key}.npy")
            _read_header(self.stream)
        row = np.frombuffer(self.stream.read(self.bytes), dtype=np.uint8).reshape(self.shape[1:])
        self.next += 1
        return row

    def close(self) -> None:
        """Let go of the file and of what was passed over."""
        self.passed.clear()
        if self.stream is not None:
            self.stream.close()
        if self.file is not None:
            self.file.close()


def is_fetal_planes(names: Sequence[str]) -> bool:
    """Return whether a CSV with these columns is FETAL_PLANES_DB's."""
    return set(_FETAL_COLUMNS) <= {name.strip().casefold() for name in names}


def read_fetal_planes(path: Path, names: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]) -> Manifest:
    """Read FETAL_PLANES_DB from the rows of its CSV, beside which ``Images/`` lies: planes are the
    classes, and it has its own split into train and test. Raises DataError."""
    plain = [name.casefold() for name in names]
    image, patient, plane, train = (plain.index(name) for name in _FETAL_COLUMNS)
    found = []
    for line, row in rows:
        if row[train] not in ("0", "1") or not (row[image] and row[plane]):
            raise DataError(
                f"{path}, line {line}: Train is {row[train]!r}, of image {row[image]!r} and plane {row[plane]!r}; "
                f"wanted 0 or 1, and names"
            )
        name = row[image] if row[image].casefold().endswith(".png") else f"{row[image]}.png"
        split = "train" if row[train] == "1" else "test"
        found.append((path.parent / "Images" / name, row[plane], split, row[patient], f"Images/{name}"))
    classes = tuple(sorted({label for _, label, *_ in found}))
    number = {name: place for place, name in enumerate(classes)}
    placed: list[tuple[Path, Label, str, str, str]] = [
        (file, number[label], split, patient, name) for file, label, split, patient, name in sorted(found)
    ]
    return manifest_of(path, classes, placed)


def _array(path: Path, key: str) -> Any:
    """One array of the file. Raises DataError: nothing in it is ever unpickled."""
    with _told(path, key), np.load(path, allow_pickle=False) as file:
        return file[key]


def _header(path: Path, key: str) -> tuple[tuple[int, ...], bool, Any]:
    """Shape of an array that is not read yet, whether it lies column by column, and its dtype: a
    small file may claim to unpack to more than any memory. Raises DataError."""
    with _told(path, key), zipfile.ZipFile(path) as file, file.open(f"{key}.npy") as stream:
        return _read_header(stream)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    if min(shape, default=0) < 0:  # NumPy lets it pass, and takes what fits
        raise ValueError(f"shape {shape} is below 0")
    return shape, by_columns, dtype


@contextmanager
def _told(path: Path, key: str) -> Iterator[None]:
    """What goes wrong within, as one DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except MemoryError as error:
        raise DataError(f"{path}: {key} is larger than the available memory; use the set in a smaller size") from error
    except KeyError as error:
        raise DataError(f"{path}: has no array {key!r}; wanted a MedMNIST file with {', '.join(_KEYS)}") from error
    except DataError:
        raise
    except Exception as error:  # damaged archives make zipfile, its decoders and NumPy raise nearly every type there is
        raise DataError(
            f"{path}: is not a MedMNIST .npz file, or is damaged ({' '.join(str(error).split())[:120]}); "
            f"download it again"
        ) from error
