"""Read the pictures of a folder as a page holds them: inside itself."""

import base64
from dataclasses import dataclass
from pathlib import Path

from medmambase.data.reading.images import ImageError, read_image
from medmambase.evaluation.report.run_files import ReportError

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A PNG picture: its size in pixels, and a data URI of its file."""

    width: int
    height: int
    uri: str


def read_picture(path: Path) -> Picture:
    """Read a PNG file. Raises ReportError for one that is damaged, or no PNG."""
    try:
        height, width, _ = read_image(path, 3).shape
        content = path.read_bytes()
    except (ImageError, OSError) as error:
        raise ReportError(f"{path} is not a readable PNG picture ({error}); delete it or draw it again") from error
    if not content.startswith(PNG):
        raise ReportError(f"{path} holds a picture of another kind; wanted a PNG")
    return Picture(width, height, "data:image/png;base64," + base64.b64encode(content).decode("ascii"))
