"""Make Triton's interpreter faster, with the same results."""

from typing import Any


def patch_the_language_once() -> None:
    """Let the interpreter replace the functions of ``triton.language`` once for each launch and
    module of kernels.

    It does so again whenever one kernel function calls another, finds nothing left to replace, and
    spends a third of its time there. Versions of Triton that do not take the replacements back
    after a launch are left as they are.
    """
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):
        return
    patch, patched = interpreter._patch_lang, set()

    class Launch(interpreter._LangPatchScope):  # thrown away by a function that another one called
        def restore(self) -> None:
            patched.clear()
            super().restore()

    def patch_unless_done(fn: Any) -> Launch:
        launch = Launch()
        if id(fn.__globals__) not in patched:
            launch._changes = patch(fn)._changes
            patched.add(id(fn.__globals__))
        return launch

    interpreter._patch_lang = patch_unless_done
