"""The network that is pretrained, and what is thrown away afterwards: a linear head, and a light
decoder that draws pictures from the maps of all stages."""

from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase.model.layers import PATCH
from medmambase.model.network import MedMambaSE

_WIDTH = 64  # channels of the decoder: it should do little, so that the network does the most


class Predicted(NamedTuple):
    """What is predicted of images: ``structures``, logits (b, structures), and ``pictures`` (b,
    pictures, h, w); None where that is not asked for. In float32."""

    structures: Tensor | None
    pictures: Tensor | None


class Decoder(nn.Module):
    """Draw pictures of the input's size: from the last stage upwards each map is normalised,
    projected to the same few channels, and added to the one below it, twice as large; at the
    first stage a convolution follows, and each position becomes its 4 x 4 pixels.

    Maps are enlarged by repetition, whose gradients are sums in a fixed order on every device.
    """

    def __init__(self, dims: tuple[int, ...], pictures: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, _WIDTH)) for dim in dims)
        self.smooth = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.paint = nn.Conv2d(_WIDTH, pictures * PATCH * PATCH, 1)
        nn.init.trunc_normal_(self.paint.weight, std=0.02)  # else the first pictures are a grid of dots
        nn.init.zeros_(self.paint.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, maps: list[Tensor], height: int, width: int) -> Tensor:
        """Maps (b, h, w, dims[i]) of an image of that height and width -> (b, pictures, height,
        width)."""
        x = self.lateral[-1](maps[-1])
        for lateral, finer in zip(list(self.lateral)[-2::-1], maps[-2::-1], strict=True):
            larger = repeat(x, "b h w c -> b (h up) (w along) c", up=2, along=2)
            x = larger[:, : finer.shape[1], : finer.shape[2]] + lateral(finer)
        x = F.gelu(self.smooth(F.gelu(x.permute(0, 3, 1, 2))))
        pictures: Tensor = F.pixel_shuffle(self.paint(x), PATCH)
        return pictures[..., :height, :width]


class Pretrained(nn.Module):
    """A network without its head (``backbone``), and what it is asked while it is pretrained: which
    of ``structures`` are there, from the mean of its last map, and ``pictures``, from all maps.
    Either count may be 0."""

    def __init__(self, backbone: MedMambaSE, structures: int, pictures: int) -> None:
        super().__init__()
        self.backbone = backbone
        dims = backbone.config.dims
        self.head = nn.Linear(dims[-1], structures) if structures else None
        self.decoder = Decoder(dims, pictures) if pictures else None

    def forward(self, images: Tensor) -> Predicted:
        """images (b, in_chans, h, w) -> what is predicted of them."""
        maps = self.backbone.maps(images)
        present = None if self.head is None else self.head(maps[-1].mean((1, 2))).float()
        pictures = None if self.decoder is None else self.decoder(maps, *images.shape[-2:]).float()
        return Predicted(present, pictures)


def predict(network: Pretrained, images: Tensor, dtype: torch.dtype) -> Predicted:
    """Run a network on normalised images (b, c, h, w) with matrix products in ``dtype``."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        found: Predicted = network(images)
    return found
