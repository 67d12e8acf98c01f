"""MedMambaSE from image to logits, in the order of its figure: patch embedding, four stages with
patch merging between, head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from medmambase import packaged
from medmambase.config import SHRINKS, AnyConfig, Block, ConfigError, ModelConfig, Odd, OpponentConfig, Preprocessing
from medmambase.model import starting, weights
from medmambase.model.batch_norm import count_batch
from medmambase.model.classifier import Trainable
from medmambase.model.frozen import FrozenNetwork
from medmambase.model.initialise import initialise
from medmambase.model.layers import PATCH, DropPath, PatchEmbedding, Stage, as_coded, draw_paths
from medmambase.run_folder import DESCRIPTION
from medmambase.validation import check, check_functions, check_path


def last_map(config: AnyConfig, size: int) -> int:
    """Height and width of the last stage's map for a square image of ``size`` pixels; of an
    opponent's, what they are at least."""
    if isinstance(config, OpponentConfig):
        return size // SHRINKS
    for shrink in (PATCH, *(2 for _ in config.dims[1:])):
        size = -(-size // shrink) if config.odd == "pad" else size // shrink
    return size


class MedMambaSE(Trainable):
    """The network that ``config`` describes. It knows the names of its classes and how its images
    are prepared.

    ``forward`` maps images (b, in_chans, h, w), prepared as ``preprocessing`` says and of any
    height and width, to logits (b, num_classes). With ``features_only`` there is no head, and it
    returns the stages' maps instead, a list of (b, dims[i], h / 4 / 2^i, w / 4 / 2^i), for
    segmentation or detection.

    ``recompute`` (False; set it to True) keeps only the input of each block in training and
    computes the block again in backward: the same gradients to the bit. What waits for backward
    shrinks to an eighth, and a step takes half as long again (`tiny`, 128 px, batch 16, two threads
    of a CPU).

    Raises TypeError for an argument or an image of another type; ValueError if ``classes`` are not
    ``config.num_classes`` different names, or the image is not (b, in_chans, h, w) in the dtype of
    the weights.
    """

    config: ModelConfig

    def __init__(
        self,
        config: ModelConfig,
        *,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        features_only: bool = False,
    ) -> None:
        wanted: object = config
        if not isinstance(wanted, ModelConfig):
            raise TypeError(f"config is {wanted!r:.80}; it must be a ModelConfig, such as PRESETS['tiny']")
        super().__init__(config, classes, preprocessing, features_only)
        self.embedding = PatchEmbedding(config)
        self.dropout = nn.Dropout(config.drop_rate)
        last = max(1, sum(config.depths) - 1)
        blocks = iter([(config.drop_path * i / last, width) for i, width in enumerate(config.gate_widths())])
        self.stages = nn.ModuleList(
            Stage(channels, config, list(islice(blocks, depth)), first=index == 0)
            for index, (depth, channels) in enumerate(zip(config.depths, config.dims, strict=True))
        )
        self.head = None if features_only else nn.Linear(config.dims[-1], config.num_classes)
        initialise(self, config.init)

    def maps(self, image: Tensor) -> list[Tensor]:
        """image (b, in_chans, h, w) -> the map of each stage, (b, h', w', dims[i])."""
        x = self.dropout(self.embedding(image))
        if self.training:
            x = count_batch(self, x)
        maps, recompute = [], self.recompute and self.training and torch.is_grad_enabled()
        factors = iter(draw_paths([module for module in self.modules() if isinstance(module, DropPath)], x))
        for stage in self.stages:
            x = stage(x, list(islice(factors, len(cast(Stage, stage).blocks))), recompute, self.training)
            maps.append(x)
        return maps

    def for_prediction(self) -> FrozenNetwork:
        """Make a copy that only predicts, without gradients; its logits are the same up to
        rounding, of one image on a CPU in half the time. See ``FrozenNetwork``."""
        return FrozenNetwork(self)

    @classmethod
    def load(cls, folder: Path | str, *, features_only: bool = False) -> Self:
        """Load the network that ``save`` wrote, in evaluation mode. Raises WeightsError if the
        folder is not one, or its two files do not belong together."""
        folder = check_path("folder", folder)
        check("features_only", features_only, bool, ConfigError)
        tensors, config, classes, preprocessing = weights.read_folder(folder)
        if not isinstance(config, ModelConfig):
            raise weights.not_ours(folder, config)
        if features_only:
            tensors = {key: t for key, t in tensors.items() if not key.startswith("head.")}
        try:
            network = cls(config, classes=classes, preprocessing=preprocessing, features_only=features_only)
        except (ValueError, TypeError, RuntimeError) as error:
            raise weights.WeightsError(
                f"{folder / DESCRIPTION}: describes no network ({error}); restore the file"
            ) from error
        weights.fill(network, tensors, folder)
        return network.eval()

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        num_classes: int | None = None,
        in_chans: int | None = None,
        features_only: bool = False,
        say: Callable[[str], object] = lambda line: None,
    ) -> Self:
        """Load learned weights into a network in evaluation mode; nothing is fetched.

        ``source``: "nano-drawn", weights that come with this package and have learned from drawn
        pictures alone (a file of that name: "./nano-drawn"); the folder or file that
        ``medmambase-pretrain`` wrote, a network's own folder (``runs/x-001/best``), or a checkpoint
        of MedMamba or of the MedMambaSE notebook. Weights of a pretraining have no head: with
        ``num_classes`` the network gets a new one, and without it has none and returns the maps of
        its stages, as with ``features_only``.
        ``in_chans`` 1 (grey) or 3 (RGB), whatever the weights were learned with; None: the same.
        ``say`` gets the account of matched, skipped and new keys.

        Raises WeightsError where there is no such file, or it cannot be used.
        """
        path = check_path("source", source)
        check_functions({"say": say}, ConfigError)
        if isinstance(source, str):
            path = packaged.names().get(source, path)
            for note in packaged.notes(source):
                say(note)
        start = starting.read(path)
        if num_classes is None and not any(key.startswith("head.") for key in start.tensors):
            features_only = True
        network = cls.start_from(
            start.tensors, start.config, num_classes=num_classes, in_chans=in_chans, say=say, source=str(path),
            features_only=features_only,
        )  # fmt: skip  # what was asked for
        if start.preprocessing is not None:
            network.preprocessing = replace(start.preprocessing, channels=network.config.in_chans)
        if len(start.classes) == network.config.num_classes:
            network.classes = start.classes
        return network

    @classmethod
    def from_upstream(
        cls,
        source: Path | str | Mapping[str, Any],
        odd: Odd = "crop",
        *,
        block: Block | None = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        say: Callable[[str], object] = print,
    ) -> Self:
        """Load a checkpoint of MedMamba or of the MedMambaSE notebook into a network in evaluation
        mode.

        The architecture is read from the shapes of all tensors, never from the file's name.
        ``source`` is a file (.pth, .pt, .safetensors, .npz; nothing is unpickled with code) or a
        mapping from upstream's names to tensors. ``odd`` "crop" does with maps of odd size what
        upstream does.

        ``block``, ``num_classes`` and ``in_chans`` ask for another network than the file's. The
        head starts anew if the number of classes differs, and SE gates do if only one of the two
        blocks has them (new gates are exactly 1); RGB weights are summed for grey input, and grey
        ones shared out for RGB. ``say`` gets the account of matched, skipped and new keys.

        Raises WeightsError if the file cannot be read, is neither network, holds a tensor that the
        network cannot take, lacks one that it needs, or cannot become the ``block`` asked for.
        """
        check_functions({"say": say}, ConfigError)
        if not isinstance(source, Mapping):
            source = check_path("source", source)
        tensors, config = weights.read_upstream(source)
        return cls.start_from(
            tensors, replace(config, odd=odd), block=block, num_classes=num_classes, in_chans=in_chans, say=say,
            source="the mapping" if isinstance(source, Mapping) else str(source),
        )  # fmt: skip  # what was asked for

    @classmethod
    def start_from(
        cls,
        tensors: Mapping[str, Tensor],
        config: ModelConfig,
        *,
        block: Block | None = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        say: Callable[[str], object] = print,
        source: str = "the tensors",
        features_only: bool = False,
    ) -> Self:
        """Start from tensors under upstream's names or our own, and the architecture that they
        belong to; otherwise as ``from_upstream``. ``source`` names them in errors. With
        ``features_only`` the network has no head."""
        if block is not None and as_coded(block) != as_coded(config.block):
            raise weights.WeightsError(
                f"{source}: these are weights of {config.block!r}, whose convolutions have another order than those of "
                f"{block!r}; choose a block with the same order"
            )
        changes: dict[str, Any] = {
            key: value
            for key, value in (("block", block), ("num_classes", num_classes), ("in_chans", in_chans))
            if value is not None
        }
        network = cls(replace(config, **changes), features_only=features_only)
        new = weights.new_parts(tensors, config, block, num_classes) | ({"head"} if features_only else set())
        matched, account = weights.match(network, tensors, config, source, new)
        network.load_state_dict(matched, strict=False)  # the parts in ``new`` keep what they were drawn with
        say(account)
        return network.eval()
