"""Make Triton's interpreter faster, with the same results.

Nearly all of its time goes into describing blocks, not into computing them. What is replaced here
was read in Triton 3.7; what another version does not have or does in another way is left as it is.
"""

from typing import Any


def make_the_interpreter_quick() -> None:
    """Replace what the interpreter does over and over for every operation of every kernel."""
    _patch_the_language_once()
    _forget_checks_that_nobody_reads()
    _describe_each_shape_once()


def _patch_the_language_once() -> None:
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


def _forget_checks_that_nobody_reads() -> None:
    """Leave out the check of integers for overflow where the interpreter computes it, a quarter of
    its time, and then asserts nothing, since it does not debug."""
    from triton.language.semantic import TritonSemantic

    check = getattr(TritonSemantic, "binary_op_sanitize_overflow_impl", None)
    if check is None:
        return

    def check_if_asserted(self: Any, *operands: Any) -> None:
        if self.builder.options.debug:
            check(self, *operands)

    TritonSemantic.binary_op_sanitize_overflow_impl = check_if_asserted


def _describe_each_shape_once() -> None:
    """Keep what the interpreter makes of a shape and of a dtype, in place of making it again for
    every block."""
    import triton
    from triton.language import core
    from triton.runtime import interpreter

    if not triton.__version__.startswith("3.7."):
        return
    constexpr, unwrap, same = core.constexpr, core._unwrap_if_constexpr, core.dtype.__eq__
    block_type, equal, numpy_dtype = core.block_type.__init__, core.tuple.__eq__, interpreter._get_np_dtype
    plain = (int, float, bool, str, type(None), core.tensor, core.dtype)
    blocks: dict[tuple[int, ...], tuple[Any, int, str]] = {}  # of a type: shape, elements, text
    tensors: dict[tuple[int, ...], tuple[Any, Any]] = {(): (core.tuple([]), constexpr(1))}  # shape, elements
    dtypes: dict[str, Any] = {}

    def make_block_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(size.value if type(size) is constexpr else size for size in shape)
        if sizes not in blocks:
            block_type(self, element_ty, shape)
            blocks[sizes] = self.shape, self.numel, str(self.shape)
        self.element_ty = element_ty
        self.shape, self.numel, text = blocks[sizes]
        self.name = f"<{text}, {element_ty}>"

    def make_tensor(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape) if type.is_block() else ()
        if sizes not in tensors:
            shape = core.tuple([constexpr(size) for size in sizes])
            tensors[sizes] = shape, constexpr(type.numel)
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = tensors[sizes]

    def unwrap_quickly(value: Any) -> Any:
        if type(value) is constexpr:
            return value.value
        return value if type(value) in plain else unwrap(value)

    def is_same(self: Any, other: Any) -> bool:
        return self is other or same(self, other)

    def has_sizes(self: Any, other: Any) -> Any:
        return constexpr(self.values == other) if type(other) is list else equal(self, other)

    def numpy_dtype_of(dtype: Any) -> Any:
        if dtype.name not in dtypes:
            dtypes[dtype.name] = numpy_dtype(dtype)
        return dtypes[dtype.name]

    core.block_type.__init__ = make_block_type
    core.tensor.__init__ = make_tensor
    core._unwrap_if_constexpr = unwrap_quickly
    core.dtype.__eq__ = is_same
    core.tuple.__eq__ = has_sizes
    interpreter._get_np_dtype = numpy_dtype_of
