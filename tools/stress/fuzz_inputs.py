"""Read thousands of damaged files of every format, and find tracebacks, crashes, hangs, and files
that fill the memory.

    python tools/stress/fuzz_inputs.py all --count 10000
    python tools/stress/fuzz_inputs.py images --images FOLDER --count 10000

KIND is csv (manifests, tables of splits, of soft labels, and those of a run), toml (settings), json
(what a run, a cross-validation or a pretraining has written), safetensors (weights and
checkpoints), npz (MedMNIST and weights), dicom, images (whole files of FOLDER), or all but the
last. Each damaged file is made from a whole
one and a number, so that a finding can be repeated. The program's own functions read it where a
command would; an error that a command does not tell in one line is a finding, and so are a process
that died, a file that took longer than --seconds, and memory beyond --memory. Ends with 1 if there
was any; such files are kept in --keep.
"""

import argparse
import multiprocessing
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from tqdm import tqdm

from fuzz_mutations import Case
from fuzz_readers import KINDS, cases
from medmambase.commands.console import EXIT_CODES, sentence
from medmambase.data.reading.images import ImageError

_START = 60.0  # seconds


@dataclass(frozen=True)
class Job:
    """What a process reads: damaged files of ``kind``, made with ``seed``, from files of ``images``
    where there is one. ``memory``: MB that it may take more than at its start."""

    kind: str
    seed: int
    images: Path | None
    memory: int


def damaged(whole: Sequence[tuple[Case, bytes]], job: Job, number: int) -> tuple[Case, bytes]:
    """Choose the whole file of this number and damage it."""
    chance = random.Random(f"{job.seed}/{job.kind}/{number}")
    case, data = whole[number % len(whole)]
    others = [other for one, other in whole if one.damage is case.damage]
    return case, case.damage(data, others, chance)


def outcome(case: Case) -> str:
    """Read the damaged file: what it was read as, or the kind of the error's line. Raises what a
    command would not tell."""
    try:
        return case.read()
    except MemoryError:
        raise
    except tuple(EXIT_CODES) as error:
        told = sentence(error, case.path)
        if isinstance(error, ImageError) and (not error.reason or len(told.splitlines()) != 1):
            raise AssertionError(f"not one line: {told!r}") from error  # it becomes a cell of a table
        if case.path.name not in told and str(case.path.parent) not in told:
            raise AssertionError(f"{type(error).__name__} names no file: {told[:200]!r}") from error
        return _kind_of(error, case.path)


def _kind_of(error: Exception, path: Path) -> str:
    """The same few words for every size, place and name."""
    reason = str(getattr(error, "reason", "") or error).replace(str(path), "").replace(str(path.parent), "")
    reason = re.sub(r"(damaged \(\w+|holds no picture|not read).*", r"\1", re.sub(r"\d+|'[^']*'", "#", reason))
    return f"{type(error).__name__}: {' '.join(reason.split())[:50]}"


def _peak() -> int:
    """Return the largest resident memory of this process so far, in MB; 0 on Windows, which does
    not say."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def _limit(more: int) -> None:
    """Let this process take so many MB more than now, where the system can hold it to that."""
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + (more << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def whole_files(job: Job, folder: Path) -> list[tuple[Case, bytes]]:
    """Write the whole files of a job into an empty ``folder``. Each must be read without an
    error."""
    found = [(case, case.path.read_bytes()) for case in cases(job.kind, folder, job.images)]
    for case, _ in found:
        case.read()
    return found


def _work(job: Job, numbers: range, wire: Connection) -> None:
    """Read files in a process of its own, and send (number, kind, seconds, peak) for each but the
    one that ends the process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fuzz ü ", ignore_cleanup_errors=True) as scratch:
        whole = whole_files(job, Path(scratch))
        kept = {path: path.read_bytes() for path in Path(scratch).rglob("*") if path.is_file()}
        _limit(job.memory)
        for number in numbers:
            case, content = damaged(whole, job, number)
            case.path.write_bytes(content)
            started = time.perf_counter()
            try:
                kind = outcome(case)
            except Exception as error:  # noqa: BLE001  # whatever is let through is what is looked for
                kind = f"LET THROUGH {type(error).__name__}: {error}"
            wire.send((number, kind, time.perf_counter() - started, _peak()))
            _restore(kept)
    wire.close()


def _restore(kept: dict[Path, bytes]) -> None:
    for path, content in kept.items():
        if path.stat().st_size != len(content) or path.read_bytes() != content:
            path.write_bytes(content)


class _Worker:
    """A process, what it has yet to do, and when it last sent something: it may take _START seconds
    more to send its first file."""

    def __init__(self, job: Job, numbers: range) -> None:
        self.job, self.numbers, self.told = job, numbers, time.monotonic() + _START
        context = multiprocessing.get_context("spawn")
        self.wire, theirs = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(target=_work, args=(job, numbers, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def without_the_next(self) -> "_Worker":
        """Start a new process for what remains after the file that ended this one."""
        self.process.kill()
        self.process.join()
        return _Worker(self.job, self.numbers[1:])


def counted(kinds: Counter[str]) -> str:
    """Say how many files were mutated, and what became of them."""

    def of(pattern: str) -> int:
        return sum(count for kind, count in kinds.items() if re.match(pattern, kind))

    died, refused = of("DIED"), of(r"\w+Error: ")
    accepted = kinds.total() - refused - of("LET THROUGH|HUNG|DIED")
    return (
        f"{kinds.total()} mutated, {refused} refused in one line, {accepted} accepted, {of('LET THROUGH')} tracebacks, "
        f"{of('HUNG')} hangs{f', {died} processes died' if died else ''}"
    )


def hunt(job: Job, every: range, workers: int, patience: float) -> dict[int, str]:
    """Read the files of these numbers, print the counts, and return what was found, by number."""
    kinds: Counter[str] = Counter()
    found: dict[int, str] = {}
    slowest, peak, started = (0.0, 0), (0, 0), time.monotonic()
    crew = [_Worker(job, every[i::workers]) for i in range(min(workers, len(every)))]
    with tqdm(total=len(every), desc=job.kind, unit="file", disable=None) as bar:
        while crew:
            ready = wait([worker.wire for worker in crew], timeout=1)
            for index, worker in enumerate(list(crew)):
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
                hung = time.monotonic() - worker.told > patience
                if not ended and not hung:
                    continue
                worker.process.join(None if ended else 0)
                if worker.numbers:
                    kind = f"DIED with {worker.process.exitcode}" if ended else f"HUNG for {patience:g} s"
                    found[worker.numbers[0]] = kind
                    kinds[kind] += 1
                    bar.update()
                    crew[index] = worker.without_the_next()
            crew = [worker for worker in crew if worker.numbers]
    took = time.monotonic() - started
    for kind, count in kinds.most_common():
        print(f"{count:7}  {kind}")
    print(f"{job.kind}: {counted(kinds)}; peak memory {peak[0]} MB")
    print(
        f"{job.kind}: {sum(kinds.values())} files in {took:.0f} s, {len(found)} findings; slowest {slowest[0]:.2f} s "
        f"(number {slowest[1]}); peak memory {peak[0]} MB (number {-peak[1]})",
        flush=True,
    )
    return found


def _keep(job: Job, found: dict[int, str], folder: Path) -> None:
    """Write the files that were found into ``folder``, and name them."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        whole = whole_files(job, Path(scratch))
        folder.mkdir(parents=True, exist_ok=True)
        for number, kind in sorted(found.items()):
            case, content = damaged(whole, job, number)
            path = folder / f"{job.kind}-{job.seed}-{number}-{case.path.name}"
            path.write_bytes(content)
            print(f"{path}: {kind[:400]}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0 if nothing was found, 1, or 3 without images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument(
        "kind", choices=(*KINDS, "images", "all"), metavar="KIND", help=", ".join((*KINDS, "images, all"))
    )
    parser.add_argument("--images", type=Path, help="a folder of whole images, for the kind images")
    parser.add_argument("--count", type=int, default=10_000, help="files of each kind (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first number, to make one file again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="longer for one file is a hang")
    parser.add_argument("--memory", type=int, default=2048, help="MB that reading may take")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz"), help="where files go that were findings (%(default)s)"
    )
    asked = parser.parse_args(arguments)
    if asked.kind == "images" and not (asked.images and asked.images.is_dir() and any(asked.images.rglob("*.*"))):
        print(f"--images {asked.images}: no files there; give a folder of whole images", file=sys.stderr)
        return 3
    findings = 0
    for kind in KINDS if asked.kind == "all" else (asked.kind,):
        job = Job(kind, asked.seed, asked.images, asked.memory)
        found = hunt(job, range(asked.first, asked.first + asked.count), asked.workers, asked.seconds)
        findings += len(found)
        if found:
            _keep(job, found, asked.keep)
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
