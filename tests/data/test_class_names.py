"""Other names for the classes of the data, in place of numbers."""

import json
from pathlib import Path

import pytest

from medmambase.config import ConfigError
from medmambase.data.manifest.class_names import advice, renamed
from medmambase.data.manifest.folders import Manifest, Sample
from medmambase.data.manifest.sources import read_images


def manifest(*classes: str) -> Manifest:
    samples = tuple(Sample(Path(name), label, "train", name) for label, name in enumerate(classes))
    return Manifest(Path("data"), classes, samples, ("a note",))


@pytest.mark.parametrize(
    ("classes", "wish", "wanted"),
    [
        (("0", "1", "10"), "0=malignant,1=benign", ("malignant", "benign", "10")),
        (("0", "1"), "1=0, 0=1", ("1", "0")),
        (
            ("malignant", "normal, benign"),
            "normal, benign=good, or harmless,malignant=bad",
            ("bad", "good, or harmless"),
        ),
        (("ä", "肺"), "肺=Lunge", ("ä", "Lunge")),
    ],
)
def test_named_classes_change_their_names_and_nothing_else(
    classes: tuple[str, ...], wish: str, wanted: tuple[str, ...]
) -> None:
    before = manifest(*classes)
    found = renamed(before, wish)
    assert found.classes == wanted and found.samples == before.samples
    assert found.notes[0] == "a note" and found.notes[1].startswith("classes renamed: ")


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (
            "malignant",
            "wanted CLASS=NAME, several with commas between them, for classes of the data, which has '0', '1'",
        ),
        ("2=malignant", "wanted CLASS=NAME"),
        ("0=malignant,2=benign", "wanted CLASS=NAME"),
        ("0:malignant", "wanted CLASS=NAME"),
        ("0=", "wanted CLASS=NAME"),
        ("", "wanted CLASS=NAME"),
        ("0=a,0=b", "which names a class twice"),
        ("0=1", "which calls two classes '1'"),
        ("0=a,1=a", "which calls two classes 'a'"),
    ],
)
def test_what_cannot_be_meant_is_refused(wish: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        renamed(manifest("0", "1"), wish)


def test_the_splits_of_a_run_bring_its_class_names(images: Path, tmp_path: Path) -> None:
    names = [sample.name for sample in read_images(images).samples]
    (tmp_path / "config.toml").write_text(
        f"data = {json.dumps(str(images), ensure_ascii=False)}\nclass_names = 'brain=head'\n",
        encoding="utf-8",
        newline="\n",
    )
    (tmp_path / "splits.csv").write_text(
        "path,split\n" + "".join(f'"{name}",test\n' for name in names), encoding="utf-8", newline="\n"
    )
    assert "head" in read_images(tmp_path / "splits.csv").classes
    assert "skull" in read_images(tmp_path / "splits.csv", class_names="brain=skull").classes


@pytest.mark.parametrize(
    ("classes", "known", "given", "own", "said"),
    [
        (("Normal", "krank"), ("gesund", "krank"), None, None, "give --class-names Normal=gesund, if that is what"),
        (("0", "1"), ("good", "bad one"), None, "0=good,1=bad one", 'trained with --class-names "0=good,1=bad one": '),
        (("Norm", "tumor"), ("tumour", "normal"), None, None, "give --class-names Norm=normal,tumor=tumour, if"),
        (("a", "x", "y"), ("a", "k", "m"), None, "q=k", "give --class-names x=NAME,y=NAME, where NAME is what"),
        (("nor1", "nor2"), ("normal", "tumour"), None, None, "give --class-names nor1=normal,nor2=NAME, where NAME is"),
        (("a&b", "k"), ("a", "k"), None, None, 'give --class-names "a&b=a", if'),
        (("a", "x"), ("a", "xx"), "0=xy,1=a", None, "give --class-names 0=xy,1=a,x=xx, if"),
        (("a", "x"), ("a", "k"), "old=a", None, "give --class-names old=a,x=k, if"),
        (("a", "x"), ("a", "k"), "old=x", None, "--class-names is 'old=x': what stands behind each ="),
    ],
)
def test_what_is_advised_for_a_class_that_a_network_does_not_know(
    classes: tuple[str, ...], known: tuple[str, ...], given: str | None, own: str | None, said: str
) -> None:
    unknown = sorted(set(classes) - set(known))
    told = advice(manifest(*classes), unknown, known, given, own)
    assert said in told
    if told.startswith("give") and given is None and "NAME" not in told.partition("names ")[2]:
        wish = told.removeprefix("give --class-names ").partition(", if")[0].strip('"')
        assert set(renamed(manifest(*classes), wish).classes) == set(known)
