"""The values of a vector kernel, and the LLVM code of each operation on them.

A value knows the ``Writer`` of its kernel: ``a * b`` writes the instruction at the place where the
writer is and returns its result. ``language.py`` has what a kernel is made with.
"""

from llvmlite import ir

FLOAT, WORD, INDEX, POINTER = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.PointerType()
_BYTES = 4
_FUSED = ("contract",)  # a product and a sum may become one instruction; nothing else may change
_OPERATIONS = {
    "+": ("fadd", "add"),
    "-": ("fsub", "sub"),
    "*": ("fmul", "mul"),
    "/": ("fdiv", ""),
    "//": ("", "sdiv"),
    "%": ("", "srem"),
}


class Value:
    """A vector of float32, a float32, or a 64-bit integer, known when the kernel runs."""

    __slots__ = ("code", "kernel")

    def __init__(self, kernel: "Writer", code: ir.Value) -> None:
        self.kernel, self.code = kernel, code

    def __add__(self, other: "Value | float") -> "Value":
        return self.kernel._arithmetic("+", self, other)

    def __radd__(self, other: "Value | float") -> "Value":
        return self.kernel._arithmetic("+", other, self)

    def __sub__(self, other: "Value | float") -> "Value":
        return self.kernel._arithmetic("-", self, other)

    def __rsub__(self, other: "Value | float") -> "Value":
        return self.kernel._arithmetic("-", other, self)

    def __mul__(self, other: "Value | float") -> "Value":
        return self.kernel._arithmetic("*", self, other)

    def __rmul__(self, other: "Value | float") -> "Value":
        return self.kernel._arithmetic("*", other, self)

    def __truediv__(self, other: "Value | float") -> "Value":
        return self.kernel._arithmetic("/", self, other)

    def __rtruediv__(self, other: "Value | float") -> "Value":
        return self.kernel._arithmetic("/", other, self)

    def __floordiv__(self, other: "Value | int") -> "Value":
        return self.kernel._arithmetic("//", self, other)

    def __mod__(self, other: "Value | int") -> "Value":
        return self.kernel._arithmetic("%", self, other)

    def __lt__(self, other: "Value | float") -> "Value":
        return self.kernel._compare("<", self, other)

    def __gt__(self, other: "Value | float") -> "Value":
        return self.kernel._compare(">", self, other)


class Pointer:
    """Where elements of 4 bytes begin."""

    __slots__ = ("code", "kernel")

    def __init__(self, kernel: "Writer", code: ir.Value) -> None:
        self.kernel, self.code = kernel, code

    def at(self, offset: Value | int) -> "Pointer":
        """The place so many elements further."""
        place = self.kernel.builder.gep(self.code, [self.kernel._as(offset, INDEX)], inbounds=True, source_etype=FLOAT)
        return Pointer(self.kernel, place)

    def load(self, offset: Value | int = 0) -> Value:
        """The vector that begins there."""
        return self.kernel._load(self.at(offset), self.kernel.vector)

    def fetch(self, offset: Value | int) -> None:
        """Ask main memory for the cache line there, which is read soon; the place need not
        exist."""
        kinds = [POINTER, WORD, WORD, WORD]
        function = self.kernel._intrinsic("prefetch.p0", ir.VoidType(), kinds)
        self.kernel.builder.call(
            function, [self.at(offset).code, WORD(0), WORD(3), WORD(1)]
        )  # to read, into the first cache, data

    def store(self, offset: Value | int, value: Value | float) -> None:
        """Write a vector, or a number in every lane."""
        self.kernel.builder.store(self.kernel._as(value, self.kernel.vector), self.at(offset).code, align=_BYTES)

    def number(self, offset: Value | int = 0) -> Value:
        """The float there: arithmetic with vectors takes it in every lane."""
        return self.kernel._load(self.at(offset), FLOAT)

    def store_number(self, offset: Value | int, value: Value) -> None:
        """Write one float."""
        self.kernel.builder.store(value.code, self.at(offset).code, align=_BYTES)

    def index(self, offset: Value | int = 0) -> Value:
        """The 32-bit integer there."""
        word = self.kernel._load(self.at(offset), WORD)
        return Value(self.kernel, self.kernel.builder.sext(word.code, INDEX))


class Variable:
    """A value that changes: read and assign ``.value``. It lives in a register, if there is one."""

    __slots__ = ("_place", "_type", "kernel")

    def __init__(self, kernel: "Writer", first: Value) -> None:
        self.kernel, self._type = kernel, first.code.type
        with kernel.builder.goto_entry_block():
            self._place = kernel.builder.alloca(self._type)
        self.value = first

    @property
    def value(self) -> Value:
        """What was assigned last."""
        return Value(self.kernel, self.kernel.builder.load(self._place, typ=self._type))

    @value.setter
    def value(self, value: Value) -> None:
        self.kernel.builder.store(value.code, self._place)


class Writer:
    """Writes instructions into a module, at the place of its builder; its vectors have ``lanes``
    lanes of float32."""

    builder: ir.IRBuilder

    def __init__(self, name: str, lanes: int) -> None:
        self.module, self.lanes, self.vector = ir.Module(name), lanes, ir.VectorType(FLOAT, lanes)

    def _intrinsic(self, name: str, result: ir.Type, kinds: list[ir.Type]) -> ir.Function:
        return self.module.globals.get(f"llvm.{name}") or ir.Function(
            self.module, ir.FunctionType(result, kinds), f"llvm.{name}"
        )

    def _avx512(self, name: str, *arguments: ir.Value) -> Value:
        everywhere, as_set = ir.IntType(16)(-1), WORD(4)  # in all lanes; in the processor's mode of rounding
        kinds = [argument.type for argument in arguments]
        function = self._intrinsic(f"x86.avx512.mask.{name}.ps.512", self.vector, [*kinds, everywhere.type, WORD])
        return Value(self, self.builder.call(function, [*arguments, everywhere, as_set]))

    def _unfused(self, operation: str, a: Value, b: Value) -> Value:
        """a + b or a - b, rounded as it stands."""
        return Value(self, getattr(self.builder, operation)(a.code, b.code))

    def _as(self, value: Value | float, kind: ir.Type) -> ir.Value:
        if not isinstance(value, Value):
            return kind([value] * self.lanes) if kind == self.vector else kind(value)
        if kind != self.vector or value.code.type == kind:
            return value.code
        one = self.builder.insert_element(self.vector(ir.Undefined), value.code, WORD(0))
        return self.builder.shuffle_vector(
            one, self.vector(ir.Undefined), ir.VectorType(WORD, self.lanes)([0] * self.lanes)
        )

    def _pair(self, a: Value | float, b: Value | float) -> tuple[ir.Value, ir.Value]:
        kinds = [value.code.type for value in (a, b) if isinstance(value, Value)]
        kind = self.vector if self.vector in kinds else kinds[0]
        return self._as(a, kind), self._as(b, kind)

    def _arithmetic(self, operation: str, a: Value | float, b: Value | float) -> Value:
        left, right = self._pair(a, b)
        whole = isinstance(left.type, ir.IntType)
        return Value(
            self, getattr(self.builder, _OPERATIONS[operation][whole])(left, right, flags=() if whole else _FUSED)
        )

    def _compare(self, operation: str, a: Value | float, b: Value | float) -> Value:
        left, right = self._pair(a, b)
        compare = self.builder.icmp_signed if isinstance(left.type, ir.IntType) else self.builder.fcmp_ordered
        return Value(self, compare(operation, left, right))

    def _load(self, place: Pointer, kind: ir.Type) -> Value:
        return Value(self, self.builder.load(place.code, typ=kind, align=_BYTES))
