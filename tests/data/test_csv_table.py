"""CSV manifests as people write them, and one line for each way in which they go wrong."""

from pathlib import Path

import pytest
from PIL import Image

from medmambase.data.manifest.folders import DataError, Manifest
from medmambase.data.manifest.sources import read_manifest

ROWS = [
    ("a/0.png", "ill", "p1", "train"),
    ("a/1.png", "well", "p2", "train"),
    ("b 肺/2.png", "ill", "p3", "val"),
    ("3.png", "well", "p4", "test"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, *_ in ROWS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    return tmp_path


def read(folder: Path, text: str, encoding: str = "utf-8", **settings: object) -> Manifest:
    (folder / "list.csv").write_bytes(text.encode(encoding))
    return read_manifest(folder / "list.csv", seed=0, **settings)


def rows(found: Manifest) -> list[tuple[str, str, str, str]]:
    return [(sample.name, found.classes[sample.label], sample.patient, sample.split) for sample in found.samples]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header",
    [
        ("path", "label", "patient", "split"),
        ("File Name", "Diagnosis", "Subject-ID", "SET"),
        ("image", "class", "group", "subset"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_by_many_names_and_any_delimiter(
    folder: Path, delimiter: str, header: tuple[str, ...], encoding: str, end: str
) -> None:
    text = end.join(delimiter.join(row) for row in (header, *ROWS)) + end
    found = read(folder, text, encoding)
    assert rows(found) == sorted(ROWS) and found.classes == ("ill", "well")
    assert found.samples[0].path == folder / "3.png" and found.root == folder


def test_names_of_splits_blanks_backslashes_and_empty_lines_are_understood(folder: Path) -> None:
    text = (
        "path,label,split\n\n a\\0.png , ill ,Training\na\\1.png,well,TRAIN\n,,\nb "
        "肺/2.png,ill,valid\n3.png,well,Testing\n"
    )
    assert [(name, split) for name, _, _, split in rows(read(folder, text))] == [
        (name, split) for name, _, _, split in sorted(ROWS)
    ]


def test_numbers_as_classes_are_ordered_as_numbers(folder: Path) -> None:
    text = "path,label,split\na/0.png,10,train\na/1.png,9,train\nb 肺/2.png,10,val\n3.png,9,test\n"
    assert read(folder, text).classes == ("9", "10")


def test_a_class_of_thousands_of_digits_is_a_word(folder: Path) -> None:
    text = f"path,label,split\na/0.png,{'9' * 5000},train\na/1.png,10,train\n3.png,10,val\n"
    assert read(folder, text).classes == ("10", "9" * 5000)


def test_without_splits_they_are_drawn(folder: Path) -> None:
    for row in range(40):
        Image.new("L", (4, 4)).save(folder / f"x{row}.png")
    found = read(
        folder,
        "path,label,patient,split\n" + "".join(f"x{row}.png,{'ab'[row % 2]},p{row // 2},\n" for row in range(40)),
    )
    assert {sample.split for sample in found.samples} == {"train", "val", "test"} and "by patient" in found.method


def test_another_column_can_tell_the_patient(folder: Path) -> None:
    text = "path,label,patient,split,Machine\n" + "".join(
        f"{','.join(row)},m{place}\n" for place, row in enumerate(ROWS)
    )
    assert [patient for _, _, patient, _ in rows(read(folder, text, group_column="machine"))] == [
        "m3",
        "m0",
        "m1",
        "m2",
    ]
    with pytest.raises(
        DataError, match=r"--group-column is 'machin', and there is no such column; the nearest is 'Machine'"
    ):
        read(folder, text, group_column="machin")
    with pytest.raises(DataError, match="--group-column names a column of a CSV, and this is not a CSV"):
        read_manifest(folder, seed=0, group_column="machine")


def test_a_file_that_is_not_there_is_left_to_the_reader_of_images_but_not_all(folder: Path) -> None:
    text = "path,label,patient,split\n" + "\n".join(",".join(row) for row in ROWS) + "\ngone.png,ill,p9,train\n"
    assert "gone.png" in {sample.name for sample in read(folder, text).samples}
    (folder / "sub").mkdir()
    with pytest.raises(
        DataError,
        match=r"none of its 5 images exists, such as .*3\.png; paths are relative to the folder of the CSV",
    ):
        read(folder / "sub", text)


HEADER = "path,label,split\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; wanted path,label"),
        (HEADER, "names its columns, and has no line for an image; wanted path,label"),
        (HEADER + f"{'x' * 5000},ill,train\n", "none of its 1 images exists"),
        (
            "file_list,label\na/0.png,ill\n",
            "there is no column 'path'; its columns are file_list, label; wanted path,label",
        ),
        ("path,labels\na/0.png,ill\n", "there is no column 'label'"),
        ("image,file,label\na,b,c\n", "image and file could both be the path; call the one that is meant 'path'"),
        (HEADER + "a/0.png,,train\n", "line 2: has no label; fill it in"),
        (HEADER + ",ill,train\n", "line 2: has no path"),
        (HEADER + "a/0.png,ill,train\na\\0.png,well,train\n", "line 3: a/0.png stands in line 2 already"),
        (HEADER + "a/0.png,ill,trian\n", "line 2: split is 'trian'; it must be train, val or test"),
        (HEADER + "a/0.png,ill,train\na/1.png,well,\n", "line 3: split is ''; it must be"),
        (HEADER + "a/0.png,ill,train,extra\n", "line 2: has 4 cells, and the first line names 3 columns"),
        (
            HEADER + "a/0.png,ill,train\na/1.png,wel,train\n3.png,well,val\n",
            "val has class 'well' but train has no images of it; the nearest name in train is 'wel'",
        ),
        (HEADER + "a/0.png,ill,train\na/1.png,ill,val\n", "only one class found, 'ill'"),
        (HEADER + "a/0.png,ill,val\n", "there are no training images"),
        ('path,label\n"a/0.png,ill\n', "is not a CSV file"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(folder: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(folder, text)
    assert len(str(caught.value).splitlines()) == 1 and str(folder / "list.csv") in str(caught.value)


def test_another_encoding_is_named(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"list.csv: is not UTF-8 text; save it again as UTF-8 \(in Excel: 'CSV UTF-8'\)"
    ):
        read(folder, HEADER + "Lungé.png,ill,train\n", "cp1252")


def test_the_index_of_a_real_set_is_read(shared: Path) -> None:
    found = read_manifest(shared / "data" / "pocus_lung" / "index.csv", seed=0)
    assert (
        found.classes == ("covid", "pneumonia", "regular")
        and len(found.samples) == 588
        and len({sample.patient for sample in found.samples}) == 35
    )
    by_folder = read_manifest(shared / "data" / "pocus_lung", seed=0)
    assert [(s.name, s.label, s.split) for s in found.samples] == [
        (s.name, s.label, s.split) for s in by_folder.samples
    ]


def test_a_nul_is_refused_with_its_line(folder: Path) -> None:
    with pytest.raises(DataError, match="line 3: holds a NUL character, which no file's name has"):
        read(folder, "path,label\na.png,ill\nb\0.png,well\n")
