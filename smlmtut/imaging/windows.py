"""Windows that cover a frame. They overlap, but every pixel of the frame belongs to exactly one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .._validate import whole

Span = tuple[int, int]  # camera pixels, [first, last)


@dataclass(frozen=True)
class Window:
    """A window on a frame, and its own part, for which no other window is used.

    rows, columns: what the window sees, which may end beyond the frame. own_rows, own_columns: its own part.
    The slices below are for images with `factor` pixels per camera pixel, along rows and columns.
    """

    rows: Span
    columns: Span
    own_rows: Span
    own_columns: Span

    @property
    def size(self) -> tuple[int, int]:
        """Of what the window sees, (h, w)."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def seen(self, factor: int = 1) -> tuple[slice, slice]:
        """What the window sees, in an image of the frame."""
        return _scaled(self.rows, 0, factor), _scaled(self.columns, 0, factor)

    def own(self, factor: int = 1) -> tuple[slice, slice]:
        """The window's own part, in an image of the frame."""
        return _scaled(self.own_rows, 0, factor), _scaled(self.own_columns, 0, factor)

    def within(self, factor: int = 1) -> tuple[slice, slice]:
        """The window's own part, in an image of the window."""
        return _scaled(self.own_rows, self.rows[0], factor), _scaled(self.own_columns, self.columns[0], factor)


def windows(shape: Sequence[int], size: Sequence[int], margin: int) -> list[Window]:
    """The windows of one size, (h, w), that cover a frame of shape (H, W), row by row.

    Own parts are at least `margin` pixels away from the window's edges, except along the edges of the frame.
    Raises ValueError where a window neither covers the frame nor is larger than twice the margin.
    """
    rows, columns = (spans("window", n, length, margin) for n, length in zip(shape, size, strict=True))
    return [
        Window((top, top + size[0]), (left, left + size[1]), (r0, r1), (c0, c1))
        for top, r0, r1 in rows
        for left, c0, c1 in columns
    ]


def spans(name: str, size: int, length: int, margin: int) -> list[tuple[int, int, int]]:
    """The same along one axis: (start, begin, end) of windows that cover 0 … size; [begin, end) is a window's own part.

    name: what an error calls the windows. Raises ValueError as `windows` does.
    """
    if whole(name, length) >= size:
        return [(0, 0, size)]
    if length <= 2 * margin:
        raise ValueError(
            f"{name} must be larger than twice the margin of {margin} px, or cover the frame, got {length}"
        )
    count = -(-(size - 2 * margin) // (length - 2 * margin))
    starts = [i * (size - length) // (count - 1) for i in range(count)]
    borders = [0, *((a + length + b) // 2 for a, b in pairwise(starts)), size]
    return [(start, *own) for start, own in zip(starts, pairwise(borders), strict=True)]


def _scaled(span: Span, start: int, factor: int) -> slice:
    return slice(factor * (span[0] - start), factor * (span[1] - start))
