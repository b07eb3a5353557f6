"""Checks on arguments: each returns the value it was given, or raises a ValueError that names it.

One rule for all public functions: where a tensor is wanted, an array will do (`tensor`, `floating`). Arrays of numpy
may be of any byte order, read-only or a view; nested lists and columns of tables are arrays, too. A text, None,
objects, complex numbers, and truth values where numbers are wanted, are none. Results are tensors.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

Value = TypeVar("Value")
Arguments = ParamSpec("Arguments")
# torch can store these types but not compare them: the type that it is done in
WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.float64}
SHOWN = 60  # characters of a bad value in a message


def tensor(name: str, value: object, *ranks: int, mask: bool = False) -> Tensor:
    """The tensor that value is, or a tensor of the array that it is, in its type; ValueError for anything else.

    ranks: allowed numbers of dimensions, any where there are none. mask: truth values are allowed.
    The memory is shared with an array where torch can use it as it is.
    """
    if isinstance(value, Tensor):
        array, kind = value, "c" if value.is_complex() else "b" if value.dtype == torch.bool else "f"
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal length, tensors elsewhere in a list
            raise ValueError(f"{name} must be a tensor or an array of numbers, got {shown(value)}") from error
        kind = array.dtype.kind
    if kind == "c":
        raise ValueError(f"{name} must be real, got {array.dtype}")
    if kind not in "biuf":
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {shown(value)}")
    if kind == "b" and not mask:
        raise ValueError(f"{name} must be numbers, got truth values (bool)")
    if ranks:
        rank(name, array, *ranks)
    if isinstance(array, Tensor):
        return array
    native = np.dtype(np.float64) if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
    usable = array.flags.writeable and all(step >= 0 for step in array.strides)  # by torch, without a copy
    return torch.from_numpy(array.astype(native, order="C", copy=not usable))


def floating(name: str, value: object, *ranks: int) -> Tensor:
    """As tensor, for functions that compute in the type they are given: float32 or float64, nothing coarser."""
    x = tensor(name, value, *ranks)
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {x.dtype}: convert it first")
    return x


def integers(name: str, value: object, *ranks: int) -> Tensor:
    """As tensor, in int64; ValueError where an entry is not a whole number."""
    x = tensor(name, finite(name, value), *ranks)
    if bool((signed(x) != x.long()).any()):
        raise ValueError(f"{name} must be whole numbers, got {float(x[signed(x) != x.long()][0]):g}")
    return x.long()


def number(name: str, value: Value, test: Callable | None = None) -> Value:
    """Return value if it is a single number, finite or what another test here allows; ValueError otherwise."""
    return rank(name, (test or finite)(name, value), 0)


def signed(x: Tensor) -> Tensor:
    """The same numbers in a type that torch can compare."""
    return x.to(WIDER.get(x.dtype, x.dtype))


def instance(name: str, value: Value, kind: type) -> Value:
    """Return value if it is of this class; ValueError otherwise."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {shown(value)}")
    return value


def cpu_generator(name: str, value: torch.Generator) -> torch.Generator:
    """Return value if it is a generator of the CPU; ValueError otherwise."""
    if instance(name, value, torch.Generator).device.type != "cpu":
        raise ValueError(
            f"{name} must be a generator of the CPU, where the numbers are drawn, got one of {value.device}"
        )
    return value


def device_here(name: str, value: object) -> torch.device:
    """Return value as a device, which this machine must have; ValueError otherwise."""
    try:
        found = torch.device(value)  # type: ignore[arg-type]
        if found.type != "meta":  # it has shapes but no numbers
            torch.empty(0, device=found)
            return found
    except (TypeError, RuntimeError, AssertionError):  # of torch: no such word, no such driver, not built for it
        pass
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    here = ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
    raise ValueError(f"{name} must be a device of this machine ({', '.join(here[:5])}), got {shown(value)}")


def enough_memory(name: str) -> Callable[[Callable[Arguments, Value]], Callable[Arguments, Value]]:
    """For a function whose argument of this name sets the size: a ValueError that names it where memory does not do."""

    def named(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
            try:
                return function(*args, **kwargs)
            except (MemoryError, OverflowError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not any(x in str(error) for x in ("allocate memory", "verflow")):
                    raise
                value = signature(function).bind(*args, **kwargs).arguments.get(name)
                raise ValueError(f"{name} must be such that the image fits into memory, got {shown(value)}") from error

        return call

    return named


def shown(value: object) -> str:
    """The value for a message: a line of at most SHOWN characters."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return f"an array of {value.dtype} and shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def finite(name: str, value: Value) -> Value:
    """Return value if every entry is a finite number; ValueError otherwise."""
    return _every(name, value, "finite", lambda x: torch.isfinite(x))


def positive(name: str, value: Value) -> Value:
    """Return value if every entry is finite and > 0; ValueError otherwise."""
    return _every(name, value, "finite and positive", lambda x: torch.isfinite(x) & (x > 0))


def non_negative(name: str, value: Value) -> Value:
    """Return value if every entry is finite and >= 0; ValueError otherwise."""
    return _every(name, value, "finite and not negative", lambda x: torch.isfinite(x) & (x >= 0))


def between(name: str, value: Value, low: float, high: float) -> Value:
    """Return value if every entry lies in [low, high]; ValueError otherwise."""
    return _every(name, value, f"in [{low:g}, {high:g}]", lambda x: (x >= low) & (x <= high))


def rank(name: str, value: Value, *allowed: int) -> Value:
    """Return value if its number of dimensions is one of allowed; ValueError otherwise."""
    shape = tuple(value.shape) if isinstance(value, Tensor) else np.shape(value)  # type: ignore[arg-type]
    if len(shape) not in allowed:
        if allowed == (0,):
            raise ValueError(f"{name} must be a single number of 0 dimensions, got shape {shape}")
        wanted = " or ".join(str(n) for n in allowed)
        raise ValueError(f"{name} must have {wanted} dimensions, got {len(shape)}: shape {shape}")
    return value


def whole(name: str, value: int, low: int = 1) -> int:
    """Return value as an int if it is a whole number of at least low; ValueError otherwise."""
    try:
        count = int(value)
        good = not isinstance(value, bool | np.bool_) and bool(count == value) and count >= low
    except (TypeError, ValueError, OverflowError, RuntimeError):  # None, NaN, infinity, more than one number
        good = False
    if not good:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {shown(value)}")
    return count


def image_shape(name: str, value: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) if both are whole numbers of at least 1; ValueError otherwise."""
    try:
        height, width = value
    except (TypeError, ValueError) as error:  # no sequence, or not of two
        raise ValueError(f"{name} must be (height, width), got {shown(value)}") from error
    return whole(f"{name}[0]", height), whole(f"{name}[1]", width)


def choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return value if it is one of allowed; ValueError otherwise."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def _every(name: str, value: Value, allowed: str, test: Callable[[Tensor], Tensor]) -> Value:
    entries = signed(tensor(name, value).detach())
    good = test(entries)
    if not bool(good.all()):
        first = entries[~good].flatten()[0].item()
        where = ""
        if entries.ndim:
            index = tuple(int(i) for i in (~good).nonzero()[0])
            where = f" at index {index} ({int((~good).sum())} of {entries.numel()} entries are not)"
        raise ValueError(f"{name} must be {allowed}, got {first:g}{where}")
    return value
