"""Judge the trial: the backend that was chosen, a small kernel, the scan's error and its speed.
Pure functions of Facts."""

from medmambase.doctor.facts import Facts
from medmambase.doctor.finding import Finding, Level
from medmambase.doctor.fixes import install_medmambase, report_bug

TOLERANCE = 1e-5
NOT_TRIED = "not tried"


def backend(f: Facts) -> Finding:
    """Which backend runs here, and whether it is the fast one."""
    if f.trial.backend == "torch":
        return Finding("backend", f"torch: {f.trial.reason}", Level.SLOWER, "", f.trial.reason)
    if f.trial.backend:
        return Finding("backend", f"{f.trial.backend}: {f.trial.reason}")
    if f.trial.torch:
        why = "medmambase_kernels does not load"
        return Finding("backend", f.trial.failed, Level.BROKEN, install_medmambase(), why)
    return Finding("backend", NOT_TRIED)


def kernel(f: Facts) -> Finding:
    """Whether the smallest kernel compiles and runs."""
    if f.trial.kernel_s is not None:
        return Finding("a small kernel", f"compiled and ran in {f.trial.kernel_s:.1f} s")
    if not f.trial.backend:
        return Finding("a small kernel", NOT_TRIED)
    return Finding("a small kernel", f.trial.failed, Level.BROKEN, report_bug(f), "the smallest kernel does not run")


def scan(f: Facts) -> Finding:
    """Whether the scan and its gradients equal their definition in float64."""
    if f.trial.error is None:
        if f.trial.kernel_s is None:
            return Finding("the scan", NOT_TRIED)
        return Finding("the scan", f.trial.failed, Level.BROKEN, report_bug(f), "the scan does not run")
    text = f"differs from float64 by {f.trial.error:.1e}, gradients included"
    if not f.trial.error <= TOLERANCE:  # NaN too
        return Finding("the scan", text, Level.BROKEN, report_bug(f), "the scan is wrong on this machine")
    return Finding("the scan", text)


def speed(f: Facts) -> Finding:
    """How fast the scan is."""
    if f.trial.scan_ms is not None:
        return Finding("its speed", f"16 x 96 x 256, forward and backward: {f.trial.scan_ms:.1f} ms")
    if f.trial.error is None:
        return Finding("its speed", NOT_TRIED)
    return Finding("its speed", f.trial.failed, Level.BROKEN, report_bug(f), "the scan does not finish")
