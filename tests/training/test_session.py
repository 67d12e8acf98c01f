"""What a run takes in before it trains."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmambase.config import Preprocessing, TrainConfig
from medmambase.data.decoded.image_set import no_progress
from medmambase.data.manifest.folders import DataError, Manifest, Sample
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.data.reading.images import load
from medmambase.training import session


@pytest.mark.parametrize(("then", "now"), [("percentile", "range"), ("range", "percentile")])
def test_an_image_of_16_bits_that_the_weights_have_learned_from_is_known_however_it_was_read(
    then: str, now: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for row, split in enumerate(("train", "train", "val", "test")):
        pixels = rng.integers(2000, 9000, (16, 16), dtype=np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        samples.append(Sample(tmp_path / f"{row}.png", row % 2, split, f"{row}.png"))
    seen = [load(sample.path, Preprocessing(8, 1, high_depth=then))[1].digest for sample in samples]
    manifest = Manifest(tmp_path, ("a", "b"), tuple(samples), ())

    def taken(now: str, seen: list[str]) -> session.Intake:
        config = TrainConfig(image_size=16, high_depth=now)
        return session.take_in(manifest, config, "auto", tmp_path / "cache", no_progress, Pseudonyms(None), seen)

    intake = taken(now, seen)
    assert intake.audit.seen == taken(then, seen).audit.seen == ("2.png", "3.png")
    assert taken(now, seen[:1] + seen[3:]).audit.seen == ("3.png",) and taken(now, seen[:2]).audit.seen == ()
    for advice in (
        r"pretrain without them \(medmambase-pretrain DATA --splits ",
        "for a cross-validation pretrain on drawn",
    ):
        with pytest.raises(DataError, match=rf"2 images of val or test \(2\.png, 3\.png\), .*; .*{advice}"):
            session.check_intake(intake, manifest, tmp_path, skip_bad=True, allow_leak=False)
        (tmp_path / "fold_splits.csv").touch()
