"""From an image to logits, around the stages: what a network and its frozen plan have in common;
and what all networks have that can be trained."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from medmambase.config import AnyConfig, ConfigError, ModelConfig, Preprocessing
from medmambase.model import weights
from medmambase.model.task import Task, task_of
from medmambase.validation import check, check_path


class Classifier(nn.Module):
    """Images to stage maps to logits. It knows the names of its classes and how its images are
    prepared.

    Whoever derives from it builds ``embedding``, ``stages`` and ``head`` (None with
    ``features_only``), and computes ``maps``.
    """

    config: AnyConfig
    embedding: nn.Module
    stages: nn.ModuleList
    head: nn.Linear | None

    def __init__(
        self, config: AnyConfig, classes: Sequence[str], preprocessing: Preprocessing, features_only: bool
    ) -> None:
        super().__init__()
        self.config, self.classes, self.preprocessing = config, tuple(classes), preprocessing
        self.features_only = features_only

    @property
    def task(self) -> Task:
        """What its logits mean."""
        return task_of(self.config)

    def maps(self, image: Tensor) -> list[Tensor]:
        """image (b, in_chans, h, w) -> the map of each stage, (b, h', w', dims[i]), or of the last
        alone."""
        raise NotImplementedError

    def forward_features(self, image: Tensor) -> Tensor:
        """image (b, in_chans, h, w) -> the last map (b, h', w', dims[-1])."""
        self._check(image)
        return self.maps(image)[-1]

    def forward_head(self, features: Tensor) -> Tensor:
        """The last map (b, h', w', dims[-1]) -> logits (b, num_classes): mean over positions, then
        linear."""
        if self.head is None:
            raise RuntimeError("this network was built with features_only=True and has no head; build it without")
        logits: Tensor = self.head(features.mean((1, 2)))
        return logits

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """image (b, in_chans, h, w) -> logits (b, num_classes), or the stages' maps (b, c, h, w)
        with ``features_only``."""
        if self.features_only:
            self._check(image)
            return [x.permute(0, 3, 1, 2) for x in self.maps(image)]
        return self.forward_head(self.forward_features(image))

    def _check(self, image: Tensor) -> None:
        given: object = image
        if not isinstance(given, Tensor):
            raise TypeError(
                f"the image is a {type(given).__name__}; this network wants a torch.Tensor (batch, "
                f"{self.config.in_chans}, height, width), as its preprocessing makes it; Predictor takes pictures"
            )
        if image.dim() != 4 or image.shape[1] != self.config.in_chans or 0 in image.shape[2:]:
            raise ValueError(
                f"the image has shape {tuple(image.shape)}; this network wants (batch, {self.config.in_chans}, "
                f"height, width)"
            )
        weight = next(self.parameters())
        if image.device != weight.device:
            raise ValueError(f"the image is on {image.device}, and this network on {weight.device}; move one of them")
        if image.dtype != weight.dtype and not torch.is_autocast_enabled(image.device.type):
            raise ValueError(
                f"the image has dtype {image.dtype}; this network wants {weight.dtype}, as its preprocessing makes it; "
                f"Predictor takes pictures"
            )
        if not isinstance(self.config, ModelConfig) or self.config.odd == "pad":
            return
        if min(image.shape[2:]) < (least := 2 ** (len(self.config.dims) + 1)):
            raise ValueError(
                f"the image has shape {tuple(image.shape)}; with odd='crop' height and width must be at least "
                f"{least}: use odd='pad'"
            )


class Trainable(Classifier):
    """A classifier that can be trained and saved: MedMambaSE, or an opponent.

    ``recompute`` (False): keep only the input of each block in training; see ``MedMambaSE``.
    Raises TypeError for an argument of another type; ValueError if ``classes`` are not
    ``config.num_classes`` different names, or the channels of ``preprocessing`` not
    ``config.in_chans``.
    """

    def __init__(
        self,
        config: AnyConfig,
        classes: Sequence[str] | None,
        preprocessing: Preprocessing | None,
        features_only: bool = False,
    ) -> None:
        if not isinstance(preprocessing, Preprocessing | None):
            raise TypeError(f"preprocessing is {preprocessing!r:.80}; it must be a Preprocessing, or None")
        check("features_only", features_only, bool, ConfigError)
        classes = classes if classes is not None else [str(i) for i in range(config.num_classes)]
        preprocessing = preprocessing if preprocessing is not None else Preprocessing(channels=config.in_chans)
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            raise TypeError(f"classes is {classes!r:.80}; it must be a list of names")
        super().__init__(config, classes, preprocessing, features_only)
        names: tuple[object, ...] = self.classes
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise TypeError(f"classes has {wrong[0]!r:.80}; it must be a list of names, which are text")
        if len(self.classes) != config.num_classes:
            raise ValueError(
                f"classes has {len(self.classes)} names; config.num_classes is {config.num_classes}: give one for each"
            )
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"classes is {list(self.classes)!r:.80}; two classes have the same name: give different ones"
            )
        if self.preprocessing.channels != config.in_chans:
            raise ValueError(
                f"preprocessing.channels is {self.preprocessing.channels}; config.in_chans is {config.in_chans}"
            )
        self.recompute = False

    def for_prediction(self) -> Classifier:
        """Make a copy that only predicts, without gradients."""
        raise NotImplementedError

    def save(self, folder: Path | str) -> None:
        """Write ``model.safetensors`` and ``config.json`` (architecture, classes, preprocessing)
        into ``folder``, each in one step. Raises WeightsError where that is a file, and OSError
        where it cannot be written."""
        folder = check_path("folder", folder)
        description = {
            "model": self.config.to_dict(),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
        }
        weights.write_folder(folder, self.state_dict(), description)
