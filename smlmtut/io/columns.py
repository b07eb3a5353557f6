"""Columns of a table of localizations, checked; used by every format."""

from collections.abc import Hashable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

REQUIRED = ("frame", "u", "v")
Columns = dict[Hashable, np.ndarray]


def column(table: pd.DataFrame, name: Hashable) -> np.ndarray:
    """One column of a table as an array."""
    return np.asarray(table[name])


def demand(wanted: Iterable[str], columns: Iterable[Hashable], name: str) -> None:
    """Raise ValueError where one of the wanted columns is missing."""
    there = list(columns)
    missing = [column for column in wanted if column not in there]
    if missing:
        raise ValueError(f"{name} must have the columns {missing}, got {there}")


def add(columns: Columns, name: Hashable, values: np.ndarray, path: Path) -> None:
    """Add a column to those collected so far; ValueError where its name is taken."""
    if name in columns:
        raise ValueError(f"{path} must have each column once, got {name!r} twice")
    columns[name] = values


def numbers(values: np.ndarray, name: Hashable, path: Path) -> np.ndarray:
    """The values of a column; ValueError where they are text."""
    if len(values) == 0:
        return values.astype(np.float64)  # the type of a column without rows means nothing
    if values.dtype.kind not in "uifb":
        text = next((x for x in values if isinstance(x, str)), None)
        raise ValueError(f"{name} must hold numbers in {path}, got {values.dtype}, as in {text!r}")
    return values
