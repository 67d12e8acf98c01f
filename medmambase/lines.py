"""Write text as one line of a console or of a log."""

import re

_MOST = 2000  # letters of a line; a path has 1,000 at most on a Mac, 260 on Windows
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def one_line(text: str) -> str:
    """Return a text as one line: without control characters, which a file's name may hold and a
    console obeys; of a very long one, which quotes a damaged file, its beginning and its end."""
    line = _CONTROL.sub(" ", text)
    return line if len(line) <= _MOST else f"{line[: _MOST * 3 // 4]} ... {line[-_MOST // 4 :]}"
