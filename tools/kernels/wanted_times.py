"""The times that are wanted of the scans on an H200 at the stages of ``tiny`` for 128 px, to stand
beside those that are predicted: milliseconds, 16 states, four directions."""

from collections.abc import Sequence
from typing import Any

STAGES = (96, 192, 384, 768)  # their channels
# selective_scan in float32: batch and passes, and the most at each stage.
_FORWARD = {64: (0.25, 0.12, 0.06, 0.04), 16: (0.13, 0.05, 0.03, 0.02)}
SEQUENCES = {
    **{(batch, "forward"): most for batch, most in _FORWARD.items()},
    **{(batch, "forward keeping states"): most for batch, most in _FORWARD.items()},
    (64, "forward+backward"): (1.4, 0.6, 0.32, 0.20),
}
IMAGES_KERNEL = "scan_forward.forward"  # of selective_scan_2d, alone
IMAGES = {(64, "scan kernel of forward"): (0.25, 0.11)}  # at the first two stages
HALF = 1.15  # in 16 bits at most so many times as long as in float32


def wanted(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    """Find the most that the time of a row may be; None where nothing is wanted of it. ``rows``
    hold, for a row in 16 bits, the same in float32."""
    if row["dtype"] != "float32":
        same = next((one for one in rows if _about(one) == _about(row) and one["dtype"] == "float32"), None)
        return None if same is None else HALF * same["predicted_ms"]
    table = SEQUENCES if row["operator"] == "selective_scan" else IMAGES
    most = table.get((row["batch"], row["passes"]), ())
    stage = STAGES.index(row["channels"]) if row["channels"] in STAGES else len(most)
    side = 32 >> stage
    return most[stage] if stage < len(most) and row["height"] == row["width"] == side else None


def scan_kernel_of(row: dict[str, Any]) -> dict[str, Any]:
    """The same row of the forward kernel of the scan of images alone, without what is around it."""
    ms = sum(ms for name, _, ms in row["ours"] if name == IMAGES_KERNEL)
    return row | {"passes": "scan kernel of forward", "predicted_ms": ms}


def _about(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("operator", "batch", "height", "width", "channels", "passes"))
