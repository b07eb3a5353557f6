"""The structure of a TIFF file, checked before any pixel is read."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .._files import TruncatedFile

# Bytes of a value of each type 0..13 of TIFF 6.0 and 16..18 of BigTIFF; the last entry is for unknown types.
TYPE_BYTES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8, 0])


def check_structure(path: Path, file: BinaryIO) -> int:
    """Follow the chain of a TIFF's directories and return their number.

    tifffile raises no error for a directory beyond the end of the file, so we check the chain ourselves.
    Raises ValueError where the file is not a TIFF, and TruncatedFile where a directory or a tag's value is missing.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    version = struct.unpack(order + "H", head[2:4])[0] if order and len(head) >= 8 else None
    if order is None or version not in (42, 43) or (version == 43 and len(head) < 16):
        raise ValueError(f"{path} must be a TIFF file, got {size} bytes that start with {head[:4]!r}")
    big = version == 43
    number, entry = ("Q", 20) if big else ("H", 12)
    link = "Q" if big else "I"
    word, half = order + ("u8" if big else "u4"), order + "u2"
    entries = np.dtype([("tag", half), ("type", half), ("count", word), ("value", word)])

    def unpack(fmt: str, offset: int, what: str) -> int:
        file.seek(offset)
        data = file.read(struct.calcsize(fmt))
        if len(data) < struct.calcsize(fmt):
            raise TruncatedFile(f"{path} is truncated: {what} lies at byte {offset}, the file has {size}")
        return struct.unpack(order + fmt, data)[0]

    offset = struct.unpack(order + link, head[8:16] if big else head[4:8])[0]
    seen: set[int] = set()
    while offset:
        if offset in seen:
            raise ValueError(f"{path} must be a TIFF file, got a loop of directories at byte {offset}")
        seen.add(offset)
        what = f"directory {len(seen)}"
        count = unpack(number, offset, what)
        start = offset + struct.calcsize(number)
        offset = unpack(link, start + entry * count, f"the end of {what}")
        file.seek(start)
        tags = np.frombuffer(file.read(entry * count), entries)
        length = TYPE_BYTES[np.minimum(tags["type"], len(TYPE_BYTES) - 1)].astype(np.float64) * tags["count"]
        outside = (length > struct.calcsize(link)) & (tags["value"] + length > size)
        if outside.any():
            raise TruncatedFile(f"{path} is truncated: a value of {what} lies beyond its {size} bytes")
    if not seen:
        raise ValueError(f"{path} must hold at least one image, got none")
    return len(seen)
