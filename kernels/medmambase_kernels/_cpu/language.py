"""Write vector kernels in Python: its formulas become LLVM's intermediate code, which llvmlite
compiles for the processor at hand.

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
runtime on Windows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

from medmambase_kernels._cpu.values import FLOAT, INDEX, POINTER, WORD, Pointer, Value, Variable, Writer

# What every thread of a launch is given: a table of 64-bit words. First these, then the kernel's
# pointers and sizes.
NEXT_TASK, NEXT_THREAD, TASKS, SCRATCH, SCRATCH_FLOATS, ARGUMENTS = range(6)
_AVX512 = 16  # lanes: of float32 only AVX-512's registers have so many, and it has instructions that others lack
_TO_INTEGER = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits


def word(builder: ir.IRBuilder, table: ir.Value, place: int) -> ir.Value:
    """Where a word of a launch's table stands."""
    return builder.gep(table, [INDEX(place)], source_etype=INDEX)


class Kernel(Writer):
    """One function in the making, of named pointers and sizes (64-bit integers). No two pointers
    may overlap where one is written to."""

    def __init__(self, name: str, pointers: Sequence[str], sizes: Sequence[str], lanes: int) -> None:
        super().__init__(name, lanes)
        self.name, self.arguments, self.scratch_floats = name, (*pointers, *sizes), 0
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
