"""The record of an unfinished run, from which a killed run continues: a table, and images, that grow block by block."""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .._files import hdf5, replacing
from .._validate import whole
from ..io import picasso
from ..io.tables import CSV, write_localizations

COLUMNS = ("frame", "u", "v", "height", "mass")
AGAIN = "start again with --restart, or resume=False"
ROWS_AT_ONCE = 1 << 15  # rows of the table that are in memory while it is written


class ProgressMismatch(ValueError):
    """An interrupted run had another movie, camera, network or setting, or its record is damaged."""


class ProgressFile:
    """The localizations so far, in a file to which rows are only added, and a record of how many of them are valid.

    path: of the finished table. run: what must be the same in a run that continues this one; JSON can hold it.
    resume: whether to continue an interrupted run; False deletes what it left. columns: of the table.
    sums: None, or images, (n, h, w), to which every block adds. They are stored in a file whose name has the number
        of frames, so that the record tells which file is valid.
    first: the frame with which a run begins. frames_at_most: where it ends, which a record must not exceed.
    beside: other files that appear at the end; temporary files that a killed run left of them are deleted.
    frames, rows: how many are done, counted from the start of the movie; `first` and 0, or where the interrupted run
        was.
    Raises ProgressMismatch where an interrupted run was a different one, or its record is damaged.
    """

    def __init__(
        self,
        path: Path,
        run: dict[str, Any],
        resume: bool,
        columns: Sequence[str] = COLUMNS,
        sums: NDArray[np.float64] | None = None,
        beside: Sequence[Path] = (),
        first: int = 0,
        frames_at_most: int | None = None,
    ) -> None:
        run = {**run, "columns": list(columns)}
        self.path, self.run = path, json.loads(json.dumps(run))  # as the record will give it back
        self.columns, self.sums, self.beside = list(columns), sums, tuple(beside)
        self.partial = path.with_name(f"{path.name}.partial")
        self.record = path.with_name(f"{path.name}.progress.json")
        self.scratch = path.with_name(f"{path.name}.part{path.suffix}")
        self.frames_at_most = frames_at_most
        self.frames, self.rows = first, 0
        self._clean()
        if resume and self.record.exists():
            self._continue()
        else:
            self.record.unlink(missing_ok=True)  # first, since without a record no row is valid
            self.partial.unlink(missing_ok=True)
            self._drop_sums()

    def add(self, frames: int, table: pd.DataFrame, sums: NDArray[np.float64] | None = None) -> None:
        """Add a block that ends before frame `frames`: the rows of its table, and the sums over its frames."""
        with open(self.partial, "ab") as file:
            file.write(table[self.columns].to_numpy(np.float64).tobytes())
            file.flush()
            os.fsync(file.fileno())
        if sums is not None:
            self.sums = sums if self.sums is None else self.sums + sums
            with replacing(self._sums(frames)) as temporary, open(temporary, "wb") as file:
                np.save(file, self.sums)
                file.flush()
                os.fsync(file.fileno())
        self.frames, self.rows = frames, self.rows + len(table)
        with replacing(self.record) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump({"frames": self.frames, "rows": self.rows, "run": self.run}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        self._drop_sums(self._sums(frames))

    def finish(self, pixel: float, shape: tuple[int, int], frames: int) -> None:
        """Write the table as `write_localizations` does, but in parts, then delete all other files.

        pixel: nm. shape, frames: (H, W) and length of the movie.
        """
        write = _write_csv if self.path.suffix.lower() in CSV else _write_hdf5
        write(self.path, self.scratch, self._tables(), self.rows, (pixel, shape, frames))
        self.record.unlink()
        self.partial.unlink()
        self._drop_sums()
        self._clean()

    def _tables(self) -> Iterator[pd.DataFrame]:
        """The rows in parts, of which there is at least one."""
        for first in range(0, max(self.rows, 1), ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, self.rows - first) * len(self.columns)
            values = np.fromfile(self.partial, np.float64, count, offset=self._bytes(first))
            if len(values) != count:
                raise ProgressMismatch(f"{self.partial} must hold {self.rows} rows and ends before: {AGAIN}")
            table = pd.DataFrame(values.reshape(-1, len(self.columns)), columns=self.columns)
            yield table.astype({"frame": np.int64})

    def _continue(self) -> None:
        """Start where the record ends."""
        try:
            kept = json.loads(self.record.read_text(encoding="utf-8"))
            before, frames, rows = kept["run"], whole("frames", kept["frames"]), whole("rows", kept["rows"], 0)
            enough = self.partial.stat().st_size >= self._bytes(rows)
            sums = None if self.sums is None else np.load(self._sums(frames))
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise ProgressMismatch(f"{self.record} is damaged: {AGAIN}. {error}") from error
        if not enough:
            raise ProgressMismatch(f"{self.partial} must hold the {rows} rows that {self.record} counts: {AGAIN}")
        other = [
            f"{name} was {before.get(name)}, is {now}" for name, now in self.run.items() if before.get(name) != now
        ]
        if other:
            raise ProgressMismatch(
                f"{self.record} is of another run, continue that one, or {AGAIN}: {'; '.join(other)}"
            )
        if self.frames_at_most is not None and frames > self.frames_at_most:
            raise ProgressMismatch(
                f"{self.record} is damaged, it counts {frames} frames where {self.frames_at_most} are the last: {AGAIN}"
            )
        self.frames, self.rows, self.sums = frames, rows, sums
        os.truncate(self.partial, self._bytes(rows))  # without the rows of a block that was not yet recorded

    def _clean(self) -> None:
        """Delete the temporary files that a killed run left."""
        sidecar = self.scratch.with_suffix(".yaml")
        for file in (self.path, self.path.with_suffix(".yaml"), self.record, self.scratch, sidecar, *self.beside):
            for left in self.path.parent.glob(f".{glob.escape(file.name)}.*.part"):
                left.unlink(missing_ok=True)
        for file in (self.scratch, sidecar):
            file.unlink(missing_ok=True)

    def _sums(self, frames: int) -> Path:
        return self.path.with_name(f"{self.path.name}.sums-{frames}.npy")

    def _drop_sums(self, kept: Path | None = None) -> None:
        for file in self.path.parent.glob(f"{glob.escape(self.path.name)}.sums-*.npy"):
            if file != kept:
                file.unlink(missing_ok=True)

    def _bytes(self, rows: int) -> int:
        return rows * len(self.columns) * 8


def _write_csv(path: Path, scratch: Path, tables: Iterator[pd.DataFrame], rows: int, movie: tuple) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as out:
        for table in tables:
            write_localizations(scratch, table, movie[0])
            text = scratch.read_bytes()
            out.write(text.partition(b"\n")[2] if out.tell() else text)  # the header once


def _write_hdf5(path: Path, scratch: Path, tables: Iterator[pd.DataFrame], rows: int, movie: tuple) -> None:
    done = 0
    with replacing(path) as temporary:
        with h5py.File(temporary, "w") as out:
            for table in tables:
                write_localizations(scratch, table, *movie)
                with hdf5(scratch) as part:
                    locs = part["locs"]
                    assert isinstance(locs, h5py.Dataset)
                    if "locs" not in out:
                        part.copy("metadata", out)
                    target = out.require_dataset("locs", (rows,), locs.dtype)
                    target[done : done + len(table)] = locs[...]
                done += len(table)
            picasso.seal(out)
        with replacing(path.with_suffix(".yaml")) as sidecar:
            sidecar.write_bytes(scratch.with_suffix(".yaml").read_bytes())
