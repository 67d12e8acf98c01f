"""From an image to logits, around the stages: what a network and its frozen plan have in common."""

from collections.abc import Sequence

from torch import Tensor, nn

from medmambase.config import ModelConfig, Preprocessing


class Classifier(nn.Module):
    """Images to stage maps to logits. It knows the names of its classes and how its images are
    prepared.

    Whoever derives from it builds ``embedding``, ``stages`` and ``head`` (None with
    ``features_only``), and computes ``maps``.
    """

    embedding: nn.Module
    stages: nn.ModuleList
    head: nn.Linear | None

    def __init__(
        self, config: ModelConfig, classes: Sequence[str], preprocessing: Preprocessing, features_only: bool
    ) -> None:
        super().__init__()
        self.config, self.classes, self.preprocessing = config, tuple(classes), preprocessing
        self.features_only = features_only

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
        if image.dim() != 4 or image.shape[1] != self.config.in_chans or 0 in image.shape[2:]:
            raise ValueError(
                f"the image has shape {tuple(image.shape)}; this network wants (batch, {self.config.in_chans}, "
                f"height, width)"
            )
        if self.config.odd == "crop" and min(image.shape[2:]) < (least := 2 ** (len(self.config.dims) + 1)):
            raise ValueError(
                f"the image has shape {tuple(image.shape)}; with odd='crop' height and width must be at least "
                f"{least}: use odd='pad'"
            )
