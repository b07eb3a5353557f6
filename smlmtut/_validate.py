"""Checks on arguments: each returns the value it was given, or raises a ValueError that names it."""

from typing import TypeVar

import numpy as np
import torch

Value = TypeVar("Value")


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
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else np.asarray(value).shape
    if len(shape) not in allowed:
        wanted = " or ".join(str(n) for n in allowed)
        raise ValueError(f"{name} must have {wanted} dimensions, got {len(shape)}: shape {shape}")
    return value


def whole(name: str, value: int, low: int = 1) -> int:
    """Return value as an int if it is a whole number of at least low; ValueError otherwise."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):  # None, NaN, infinity
        number = low - 1
    if isinstance(value, bool) or number != value or number < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
    return number


def image_shape(name: str, value: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) if both are whole numbers of at least 1; ValueError otherwise."""
    if len(value) != 2:
        raise ValueError(f"{name} must be (height, width), got {tuple(value)!r}")
    return whole(f"{name}[0]", value[0]), whole(f"{name}[1]", value[1])


def choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return value if it is one of allowed; ValueError otherwise."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def _every(name: str, value: Value, allowed: str, test) -> Value:
    try:
        entries = value.detach() if isinstance(value, torch.Tensor) else _tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a number or an array of numbers, got {value!r}") from error
    if entries.is_complex():
        raise ValueError(f"{name} must be real, got {entries.dtype}")
    good = test(entries)
    if not bool(good.all()):
        first = entries[~good].flatten()[0].item()
        where = ""
        if entries.ndim:
            index = tuple(int(i) for i in (~good).nonzero()[0])
            where = f" at index {index} ({int((~good).sum())} of {entries.numel()} entries are not)"
        raise ValueError(f"{name} must be {allowed}, got {first:g}{where}")
    return value


def _tensor(value: object) -> torch.Tensor:
    """A number or an array as a tensor that keeps all its digits: torch by itself makes a float float32."""
    array = np.asarray(value)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))  # a copy, since torch needs it writable
