"""Compute exp2, softplus and sigmoid in vector code: wheels bring no such library."""

from medmambase_kernels._cpu.language import Kernel
from medmambase_kernels._cpu.values import Value

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
# 2^f for f in [-1/2, 1/2], least largest error with a first coefficient of exactly 1: relative
# error at most 1.3e-7, and below 4e-9 for |f| < 0.02.
# Without that condition the error at f = 0 has one sign, and a long scan multiplies it up: at
# length 3136 the gradient of A was ten times worse.
_EXP2 = (1.0, 0.6931470632553101, 0.240223228931427, 0.055506885051727295, 0.009667622856795788, 0.0013265770394355059)
_ATANH = (1.0, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11, 1 / 13)


def _polynomial(coefficients: tuple[float, ...], x: Value) -> Value:
    value: Value | float = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    assert isinstance(value, Value)
    return value


def exp2(kernel: Kernel, x: Value) -> Value:
    """2^x: relative error 2e-7 from -126 on; below, absolute error 1e-38, and 0 from -150 on down;
    infinite from 128 on."""
    whole, fraction = kernel.split(x)
    return kernel.scaled(_polynomial(_EXP2, fraction), whole)


def softplus(kernel: Kernel, x: Value) -> tuple[Value, Value]:
    """log(1 + e^x) and its slope, the sigmoid of x, from one exponential and one division.

    With e = e^-|x|: log(1 + e^x) = max(x, 0) + log(1 + e), and log(1 + e) = 2 atanh(s) for s = e /
    (2 + e), at most 1/3.
    """
    e = exp2(kernel, kernel.magnitude(x) * -LOG2E)
    shared = 1.0 / ((e + 1.0) * (e + 2.0))
    s = e * (e + 1.0) * shared
    value = (s + s) * _polynomial(_ATANH, s * s) + kernel.at_least(0.0, x)
    return value, kernel.where(x < 0.0, e, 1.0) * (e + 2.0) * shared


def sigmoid(kernel: Kernel, x: Value) -> Value:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + exp2(kernel, x * -LOG2E))
