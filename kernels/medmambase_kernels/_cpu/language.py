"""A small language for vector kernels: Python that writes LLVM's intermediate code, which llvmlite
compiles for the processor it runs on.

A kernel is written as formulas over values. ``a * b + c`` emits a fused multiply-add; a Python
number is a constant; a scalar meets a vector in every lane. Vectors have as many lanes as the
processor's registers, so a kernel runs over channels ``kernel.lanes`` at a time and never sees a
register:

    kernel = Kernel("double", ["x", "y"], ["length"], lanes)
    (x, y), (length,) = kernel.pointers("x", "y"), kernel.sizes("length")
    with kernel.tasks() as row, kernel.range(0, length, lanes) as i:
        y.store(row * length + i, 2.0 * x.load(row * length + i))

Offsets count elements of 4 bytes. A name that changes in a loop is a ``Variable``. What a thread
needs for itself is ``kernel.scratch``: not the stack, since a large frame needs help of the C
runtime on Windows. Next stop: machine_cpu.py, which compiles and runs kernels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

FLOAT, WORD, INDEX, POINTER = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.PointerType()
# What every thread of a launch is given: a table of 64-bit words. First these, then the kernel's
# pointers and sizes.
NEXT_TASK, NEXT_THREAD, TASKS, SCRATCH, SCRATCH_FLOATS, ARGUMENTS = range(6)
_BYTES = 4
_AVX512 = 16  # lanes: of float32 only AVX-512's registers have so many, and it has instructions that others lack
_TO_INTEGER = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
_FUSED = ("contract",)  # a product and a sum may become one instruction; nothing else may change
_OPERATIONS = {
    "+": ("fadd", "add"),
    "-": ("fsub", "sub"),
    "*": ("fmul", "mul"),
    "/": ("fdiv", ""),
    "//": ("", "sdiv"),
    "%": ("", "srem"),
}


def word(builder: ir.IRBuilder, table: ir.Value, place: int) -> ir.Value:
    """Where a word of a launch's table stands."""
    return builder.gep(table, [INDEX(place)], source_etype=INDEX)


class Value:
    """A vector of float32, a float32, or a 64-bit integer, known when the kernel runs."""

    __slots__ = ("code", "kernel")

    def __init__(self, kernel: "Kernel", code: ir.Value) -> None:
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

    def __init__(self, kernel: "Kernel", code: ir.Value) -> None:
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

    def __init__(self, kernel: "Kernel", first: Value) -> None:
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


class Kernel:
    """One function in the making, of named pointers and sizes (64-bit integers). No two pointers
    may overlap where one is written to."""

    def __init__(self, name: str, pointers: Sequence[str], sizes: Sequence[str], lanes: int) -> None:
        self.name, self.lanes, self.arguments = name, lanes, (*pointers, *sizes)
        self.vector = ir.VectorType(FLOAT, lanes)
        self.scratch_floats = 0
        self.module = ir.Module(name)
        kinds = [POINTER] * (2 + len(pointers)) + [INDEX] * len(sizes)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), f"{name}_thread")
        self.function.linkage = "internal"
        for argument, kind in zip(self.function.args[1:], kinds[1:], strict=True):
            if kind is POINTER:
                argument.add_attribute("noalias")
        self._table, self._scratch, *arguments = self.function.args
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        body = self.function.append_basic_block("body")
        self.builder.branch(body)
        self.builder.position_at_start(body)
        self.named = {
            key: (Pointer if key in pointers else Value)(self, code)
            for key, code in zip(self.arguments, arguments, strict=True)
        }

    def pointers(self, *names: str) -> list[Pointer]:
        """Some of the kernel's pointers."""
        return [value for value in map(self.named.__getitem__, names) if isinstance(value, Pointer)]

    def sizes(self, *names: str) -> list[Value]:
        """Some of the kernel's sizes."""
        return [value for value in map(self.named.__getitem__, names) if isinstance(value, Value)]

    # What runs how often

    @contextmanager
    def tasks(self) -> Iterator[Value]:
        """The body, once for each task. Threads take the next as they come, so a task may write
        only what no other does."""
        test, body, after = (self.function.append_basic_block() for _ in range(3))
        tasks = self.builder.load(word(self.builder, self._table, TASKS), typ=INDEX)
        self.builder.branch(test)
        self.builder.position_at_end(test)
        task = self.builder.atomic_rmw("add", word(self.builder, self._table, NEXT_TASK), INDEX(1), "monotonic")
        self.builder.cbranch(self.builder.icmp_signed("<", task, tasks), body, after)
        self.builder.position_at_end(body)
        yield Value(self, task)
        self.builder.branch(test)
        self.builder.position_at_end(after)

    @contextmanager
    def range(self, start: Value | int, stop: Value | int, step: int = 1) -> Iterator[Value]:
        """The body for start, start + step, ... below stop; with a negative step, above stop."""
        first, last = self._as(start, INDEX), self._as(stop, INDEX)
        before = self.builder.block
        test, body, after = (self.function.append_basic_block() for _ in range(3))
        self.builder.branch(test)
        self.builder.position_at_end(test)
        i = self.builder.phi(INDEX)
        i.add_incoming(first, before)
        self.builder.cbranch(self.builder.icmp_signed("<" if step > 0 else ">", i, last), body, after)
        self.builder.position_at_end(body)
        yield Value(self, i)
        i.add_incoming(self.builder.add(i, INDEX(step), flags=("nsw",)), self.builder.block)
        self.builder.branch(test)
        self.builder.position_at_end(after)

    # Values

    def constant(self, number: float) -> Value:
        """A number in every lane."""
        return Value(self, self._as(number, self.vector))

    def number(self, number: float) -> Value:
        """A number, as one float."""
        return Value(self, FLOAT(number))

    def constant_index(self, number: int) -> Value:
        """An integer."""
        return Value(self, INDEX(number))

    def variable(self, first: Value) -> Variable:
        """A variable with its first value."""
        return Variable(self, first)

    def scratch(self, floats: int) -> Pointer:
        """Memory of this thread, at the start of a cache line."""
        place = Pointer(self, self._scratch).at(self.scratch_floats)
        self.scratch_floats += -(-floats // 16) * 16
        return place

    def rest(self) -> Pointer:
        """Scratch memory whose size only the launch knows, behind what ``scratch`` gave: to be
        taken last."""
        return self.scratch(0)

    def where(self, condition: Value, yes: Value | float, no: Value | float) -> Value:
        """One of two, in each lane where the condition is a vector's."""
        kind = next(value.code.type for value in (yes, no) if isinstance(value, Value))
        return Value(self, self.builder.select(condition.code, self._as(yes, kind), self._as(no, kind)))

    def choose(self, condition: Value, yes: Pointer, no: Pointer) -> Pointer:
        """One of two places."""
        return Pointer(self, self.builder.select(condition.code, yes.code, no.code))

    def both(self, a: Value, b: Value) -> Value:
        """Whether two conditions hold."""
        return Value(self, self.builder.and_(a.code, b.code))

    def smaller(self, a: Value | int, b: Value | int) -> Value:
        """The smaller of two integers."""
        a, b = (Value(self, self._as(value, INDEX)) for value in (a, b))
        return self.where(a < b, a, b)

    def at_least(self, low: float, x: Value) -> Value:
        """max(low, x); what is not a number stays so."""
        return self.where(self._compare(">", low, x), low, x)

    def at_most(self, high: float, x: Value) -> Value:
        """min(high, x); what is not a number stays so."""
        return self.where(self._compare("<", high, x), high, x)

    def magnitude(self, x: Value) -> Value:
        """|x|."""
        return Value(
            self, self.builder.call(self._intrinsic(f"fabs.v{self.lanes}f32", self.vector, [self.vector]), [x.code])
        )

    def root(self, x: Value) -> Value:
        """The square root of a number."""
        return Value(self, self.builder.call(self._intrinsic("sqrt.f32", FLOAT, [FLOAT]), [x.code]))

    def split(self, x: Value) -> tuple[Value, Value]:
        """x as an integer, in the form that ``scaled`` takes, and a fraction in [-1/2, 1/2]."""
        if self.lanes == _AVX512:
            whole = self._avx512(
                "rndscale", x.code, WORD(8), self.vector([0.0] * self.lanes)
            )  # 8: to the nearest integer
            return whole, self._unfused("fsub", x, whole)
        x = self.at_most(128.0, self.at_least(-127.0, x))
        # What is not a number stays so in the fraction, whose exponent must then not be touched.
        number = self.where(Value(self, self.builder.fcmp_ordered("ord", x.code, x.code)), x, 0.0)
        magic = self._unfused("fadd", number, self.constant(_TO_INTEGER))
        return magic, self._unfused("fsub", x, self._unfused("fsub", magic, self.constant(_TO_INTEGER)))

    def scaled(self, x: Value, whole: Value) -> Value:
        """x * 2^k, for the integer k that ``split`` found; x in [1/2, 2). 0 far below the smallest
        float, infinite above the largest."""
        if self.lanes == _AVX512:
            return self._avx512("scalef", x.code, whole.code, self.vector([0.0] * self.lanes))
        # k stands in the low bits of ``whole``, and is added to the exponent of x.
        words = ir.VectorType(WORD, self.lanes)
        exponent = self.builder.shl(self.builder.bitcast(whole.code, words), words([23] * self.lanes))
        return Value(
            self, self.builder.bitcast(self.builder.add(self.builder.bitcast(x.code, words), exponent), self.vector)
        )

    def total(self, x: Value) -> Value:
        """The sum over the lanes, a number."""
        add = self._intrinsic(f"vector.reduce.fadd.v{self.lanes}f32", FLOAT, [FLOAT, self.vector])
        return Value(self, self.builder.call(add, [FLOAT(-0.0), x.code], fastmath=("reassoc",)))

    def shuffle(self, a: Value, b: Value, lanes: list[int]) -> Value:
        """A vector of some of the lanes of two: those of b count on from those of a."""
        return Value(self, self.builder.shuffle_vector(a.code, b.code, ir.VectorType(WORD, len(lanes))(lanes)))

    # How it is written

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
