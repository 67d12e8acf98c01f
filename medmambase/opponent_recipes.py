"""Define an opponent's own recipe, which it is trained by where nobody asks for another.

Each is one that was published with this network; what differs is said. All take images as large as
ours do, and choose the epoch by the validation AUC.
- resnet18: MedMNIST v2 (Yang et al., Scientific Data 10:41, 2023), where it was trained from new
  weights on small medical images: Adam, a tenth after 50 and after 75 of 100 epochs.
- densenet121: CheXNet (Rajpurkar et al., arXiv 1711.05225): Adam in batches of 16, mirrored
  images. There it started from ImageNet's weights, and the rate fell where validation no longer
  improved; here the images are cropped too, and the rate falls as in the network's own
  publication (Huang et al., CVPR 2017), whose weight decay it has.
- swin_tiny: its own publication (Liu et al., ICCV 2021): AdamW, 20 of 300 epochs of warm-up, 5 as
  the longest gradient. Its rate, 1e-3 for batches of 1,024, is divided by the root of how many
  times smaller these are; 100 epochs; of its augmentations the crops and mirrored images.
- efficientnet_lite0: MedMNIST+ (Doerrich et al., Scientific Reports 15, 2025), where networks
  with weights from ImageNet, an EfficientNet among them, were trained on: AdamW, half a cosine.
  There it ended after 5 epochs without a lower validation loss, here after 10 without a higher
  AUC.
"""

from medmambase.config import TrainConfig

OPPONENT_RECIPES: dict[str, TrainConfig] = {
    "resnet18": TrainConfig(
        recipe="resnet18", optimizer="adam", lr=1e-3, weight_decay=0, schedule="steps", warmup=0, epochs=100,
        batch_size=128, patience=0, clip_norm=0, label_smoothing=0, ema=0, augmentation="none", resize="stretch",
        select_after=0,
    ),
    "densenet121": TrainConfig(
        recipe="densenet121", optimizer="adam", lr=1e-3, weight_decay=1e-4, schedule="steps", warmup=0, epochs=100,
        patience=0, clip_norm=0, label_smoothing=0, ema=0, augmentation="crop_flip", resize="stretch", select_after=0,
    ),
    "swin_tiny": TrainConfig(
        recipe="swin_tiny", lr=1.8e-4, warmup=7, epochs=100, batch_size=32, patience=0, clip_norm=5,
        label_smoothing=0.1, ema=0, augmentation="crop_flip", resize="stretch", select_after=0,
    ),
    "efficientnet_lite0": TrainConfig(
        recipe="efficientnet_lite0", lr=1e-4, weight_decay=0.01, warmup=0, epochs=100, batch_size=64, patience=10,
        clip_norm=0, label_smoothing=0, ema=0, augmentation="none", resize="stretch", select_after=0,
    ),
}  # fmt: skip  # one recipe a paragraph, to be read side by side
