"""Read thousands of damaged images, and find crashes, hangs, and files that fill the memory.

    python tools/stress/fuzz_images.py FOLDER --count 10000

Each damaged file is made from one or two files of FOLDER and a number, so that a finding can be
repeated. Ends with 1 if a process died, a file took longer than --seconds or an error was
no single line; such files are kept in --keep.
"""

import argparse
import multiprocessing
import random
import re
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from medmambase.config import Preprocessing
from medmambase.data.reading.images import ImageError, load

_START = 20.0  # seconds


def mutate(sources: Sequence[bytes], seed: int, number: int) -> bytes:
    """Make the damaged file of this seed and number: bytes flipped, numbers replaced by extremes,
    cut, spliced with another, pieces repeated."""
    chance = random.Random(f"{seed}/{number}")
    data = bytearray(chance.choice(sources))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        size = len(data)
        if size < 8:
            break
        place = (
            chance.randrange(min(size, 600)) if chance.random() < 0.6 else chance.randrange(size)
        )  # headers are near the beginning
        match chance.choice(("flip", "flip", "flip", "extreme", "extreme", "cut", "splice", "repeat", "drop")):
            case "flip":
                for _ in range(chance.choice((1, 1, 2, 8, 32))):
                    data[min(size - 1, place + chance.randrange(64))] = chance.randrange(256)
            case "extreme":
                width = chance.choice((1, 2, 4))
                value = chance.choice((0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1))
                data[place : place + width] = value.to_bytes(width, chance.choice(("little", "big")))
            case "cut":
                del data[place:]
            case "splice":
                other = chance.choice(sources)
                data[place:] = other[chance.randrange(len(other)) :] if chance.random() < 0.5 else other[place:]
            case "repeat":
                piece = data[place : place + chance.choice((4, 64, 4096))]
                data[place:place] = piece * chance.choice((1, 3))
            case _:
                del data[place : place + chance.choice((1, 4, 256))]
    return _with_checksums(bytes(data)) if chance.random() < 0.7 else bytes(data)


def _with_checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG, so that the damage gets past them; anything else stays as it
    is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        if len(body) < 4 + length:
            break
        parts.append(data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join(parts) + data[place:]


def outcome(path: Path, high_depth: bool) -> str:
    """Read a file: returns "image", or the kind of the error's line. Raises what the reader lets
    through."""
    try:
        image, facts = load(path, Preprocessing(size=32, high_depth="percentile" if high_depth else "range"))
    except ImageError as error:
        if not error.reason or len(str(error).splitlines()) != 1:
            raise AssertionError(f"not one line: {error!r}") from error
        reason = re.sub(r"\d+|'[^']*'", "#", error.reason)  # the same line for every size and place
        return re.sub(r"(damaged \(\w+|holds no picture|not read).*", r"\1", reason)[:60]
    if tuple(image.shape) != (3, 32, 32) or facts.width < 1 or facts.height < 1:
        raise AssertionError(f"{tuple(image.shape)}, {facts}")
    return "image"


def _peak() -> int:
    """Return the largest resident memory of this process so far, in MB; 0 on Windows, which does
    not say."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def _work(folder: Path, seed: int, numbers: range, wire: Connection) -> None:
    """Read files in a process of its own, and send (number, kind, seconds, peak) for each but the
    one that ends the process."""
    sources = read_sources(folder)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        path = Path(scratch, "damaged.bin")
        for number in numbers:
            path.write_bytes(mutate(sources, seed, number))
            started = time.perf_counter()
            try:
                kind = outcome(path, number % 2 == 0)
            except Exception as error:  # noqa: BLE001  # whatever the reader lets through is what is looked for
                kind = f"LET THROUGH {type(error).__name__}: {error}"
            wire.send((number, kind, time.perf_counter() - started, _peak()))
    wire.close()


def read_sources(folder: Path) -> list[bytes]:
    """List every file below ``folder`` of at most 1 MB, in the order of their names."""
    return [
        path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and 0 < path.stat().st_size <= 1 << 20
    ]


class _Worker:
    """A process, what it has yet to do, and when it last sent something: it may take _START seconds
    more to send its first file."""

    def __init__(self, folder: Path, seed: int, numbers: range) -> None:
        self.folder, self.seed, self.numbers, self.told = folder, seed, numbers, time.monotonic() + _START
        context = multiprocessing.get_context("spawn")
        self.wire, theirs = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(target=_work, args=(folder, seed, numbers, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def without_the_next(self) -> "_Worker":
        """Start a new process for what remains after the file that ended this one."""
        self.process.kill()
        self.process.join()
        return _Worker(self.folder, self.seed, self.numbers[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="whole images of the formats to damage")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first number, to make one file again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="longer for one file is a hang")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz"), help="where files go that end a process, hang or are let through"
    )
    asked = parser.parse_args(arguments)
    if not asked.folder.is_dir() or not (sources := read_sources(asked.folder)):
        print(f"{asked.folder}: no files of at most 1 MB there", file=sys.stderr)
        return 3
    kinds: Counter[str] = Counter()
    found: dict[int, str] = {}
    slowest, peak, started = (0.0, 0), (0, 0), time.monotonic()
    every = range(asked.first, asked.first + asked.count)
    workers = [
        _Worker(asked.folder, asked.seed, every[i :: asked.workers]) for i in range(min(asked.workers, asked.count))
    ]
    with tqdm(total=asked.count, unit="file", disable=None) as bar:
        while workers:
            ready = wait([worker.wire for worker in workers], timeout=1)
            for index, worker in enumerate(list(workers)):
                ended = False
                if worker.wire in ready:
                    try:
                        number, kind, seconds, memory = worker.wire.recv()
                    except EOFError:
                        ended = True
                    else:
                        worker.numbers, worker.told = worker.numbers[1:], time.monotonic()
                        slowest, peak = max(slowest, (seconds, number)), max(peak, (memory, -number))
                        kinds["LET THROUGH" if kind.startswith("LET THROUGH") else kind] += 1
                        if kind.startswith("LET THROUGH"):
                            found[number] = kind
                        bar.update()
                        continue
                hung = time.monotonic() - worker.told > asked.seconds
                if not ended and not hung:
                    continue
                worker.process.join(None if ended else 0)
                if worker.numbers:
                    kind = f"DIED with {worker.process.exitcode}" if ended else f"HUNG for {asked.seconds:g} s"
                    found[worker.numbers[0]] = kind
                    kinds[kind] += 1
                    bar.update()
                    workers[index] = worker.without_the_next()
            workers = [worker for worker in workers if worker.numbers]
    took = time.monotonic() - started
    for kind, count in kinds.most_common():
        print(f"{count:7}  {kind}")
    print(f"{sum(kinds.values())} files in {took:.0f} s ({sum(kinds.values()) / took:.0f} a second); slowest "
        f"{slowest[0]:.2f} s (number {slowest[1]});"
          f" peak memory {peak[0]} MB (number {-peak[1]})")  # fmt: skip  # one sentence
    for number, kind in sorted(found.items()):
        asked.keep.mkdir(parents=True, exist_ok=True)
        (asked.keep / f"{asked.seed}-{number}.bin").write_bytes(mutate(sources, asked.seed, number))
        print(f"{asked.keep / f'{asked.seed}-{number}.bin'}: {kind}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
