"""What a spawned process of a script imports in the script's place: first the names are answered,
then the script is imported."""

import os
import runpy
import sys

from medmambase_kernels import drop_in

MAIN, INSTEAD, CPU = (f"MEDMAMBASE_DROP_IN_{name}" for name in ("MAIN", "INSTEAD", "CPU"))

if __name__ == "__mp_main__":  # as multiprocessing imports the main module
    drop_in.install(instead=bool(os.environ.get(INSTEAD)), quiet=True, cpu=bool(os.environ.get(CPU)))
    kind, _, place = os.environ[MAIN].partition("=")
    if kind == "init_main_from_name":
        globals().update(runpy.run_module(place, run_name="__mp_main__", alter_sys=True))
    else:
        globals().update(runpy.run_path(place, run_name="__mp_main__"))
    sys.modules["__mp_main__"].__dict__.update(globals())
