"""The record of an unfinished run, from which a killed run continues: a table, and images, that grow block by block."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .._files import hdf5, replacing, reserve
from .._validate import whole
from ..io import picasso
from ..io.tables import CSV, write_localizations

COLUMNS = ("frame", "u", "v", "height", "mass")
AGAIN = "start again with --restart, or resume=False"
ROWS_AT_ONCE = 1 << 15  # rows of the table that are in memory while it is written


class ProgressMismatch(ValueError):
    """A run had another movie, camera, network or setting, or what is kept of it is damaged."""


class ProgressFile:
    """The localizations so far, in a file to which rows are only added, and a record of how many of them are valid.

    path: of the finished table. run: what must be the same in a run that continues this one; JSON can hold it.
    resume: whether to continue an interrupted run; False deletes what it left. columns: of the table.
    sums: None, or images, (n, h, w), to which every block adds. They are stored in a file whose name has the number
        of frames, so that the record tells which file is valid.
    first: the frame with which a run begins.
    beside: other files that appear at the end; temporary files that a killed run left of them are deleted.
    frames, rows: how many are done, counted from the start of the movie; `first` and 0, or where the interrupted run
        was.
    Only one run may write: hold `_files.held`.
    Raises ProgressMismatch where an interrupted run was a different one, or its record is damaged: the record has a
        hash of itself, of the rows and of the sums, so that no change goes unnoticed.
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
    ) -> None:
        run = {**run, "columns": list(columns)}
        self.path, self.run = path, json.loads(json.dumps(run))  # as the record will give it back
        self.columns, self.sums, self.beside = list(columns), sums, tuple(beside)
        self.partial = path.with_name(f"{path.name}.partial")
        self.record = path.with_name(f"{path.name}.progress.json")
        self.scratch = path.with_name(f"{path.name}.part{path.suffix}")
        self.frames, self.rows = first, 0
        self.hash = hashlib.sha256()  # of the rows
        self._clean()
        if resume and self.record.exists():
            self._continue()
        else:
            self.record.unlink(missing_ok=True)  # first, since without a record no row is valid
            self.partial.unlink(missing_ok=True)
            self._drop_sums()

    def add(self, frames: int, table: pd.DataFrame, sums: NDArray[np.float64] | None = None) -> None:
        """Add a block that ends before frame `frames`: the rows of its table, and the sums over its frames."""
        rows = table[self.columns].to_numpy(np.float64).tobytes()
        with open(self.partial, "ab") as file:
            self._verify_size(file.seek(0, os.SEEK_END))  # before the file gets worse
            file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        if sums is not None:
            self.sums = sums if self.sums is None else self.sums + sums
            with replacing(self._sums(frames)) as temporary, open(temporary, "wb") as file:
                np.save(file, self.sums)
                file.flush()
                os.fsync(file.fileno())
        self.frames, self.rows = frames, self.rows + len(table)
        self.hash.update(rows)
        record = {"frames": self.frames, "rows": self.rows, "table": self.hash.hexdigest(), "run": self.run}
        if self.sums is not None:
            record["sums"] = _hash_of_array(self.sums)
        with replacing(self.record) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(record | {"record": _hash_of(record)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        self._drop_sums(self._sums(frames))

    def finish(self, pixel: float, shape: tuple[int, int], frames: int, stop: int | None = None) -> None:
        """Write the table as `write_localizations` does, but in parts, then delete all other files.

        pixel: nm. shape, frames: (H, W) and length of the movie. stop: where the run ends; None, with the movie.
        Raises ProgressMismatch, and writes no table, where `verify` does.
        """
        self.verify(frames if stop is None else stop)
        reserve(self.path, self._bytes(self.rows))
        write = _write_csv if self.path.suffix.lower() in CSV else _write_hdf5
        write(self.path, self.scratch, self._tables(), self.rows, (pixel, shape, frames))
        self.record.unlink()
        self.partial.unlink()
        self._drop_sums()
        self._clean()

    def verify(self, stop: int) -> None:
        """Raise ProgressMismatch where not all frames before `stop` are done, or the rows do not fill their file."""
        if self.frames != stop:
            raise ProgressMismatch(f"{self.record} is damaged, {self.frames} of {stop} frames are done: {AGAIN}")
        self._verify_size(self.partial.stat().st_size)

    def _verify_size(self, size: int) -> None:
        """Raise ProgressMismatch where the file of the rows does not have the size that this run gave it."""
        if size != self._bytes(self.rows):
            raise ProgressMismatch(
                f"{self.partial} is damaged, it must have the {self._bytes(self.rows)} bytes of {self.rows} rows and "
                f"has {size}: {AGAIN}"
            )

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
            if kept.pop("record") != _hash_of(kept):
                raise ValueError("it was changed")
            before, frames, rows = kept["run"], whole("frames", kept["frames"]), whole("rows", kept["rows"], 0)
            enough = self.partial.stat().st_size >= self._bytes(rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProgressMismatch(f"{self.record} is damaged: {AGAIN}. {error}") from error
        other = [name for name, now in self.run.items() if before.get(name) != now]
        if other:
            what = "movie" if "movie" in other else "run"
            changes = "; ".join(f"{name} was {before.get(name)}, is {self.run[name]}" for name in other)
            raise ProgressMismatch(f"{self.record} is of another {what}, continue that one, or {AGAIN}: {changes}")
        if not enough:
            raise ProgressMismatch(f"{self.partial} must hold the {rows} rows that {self.record} counts: {AGAIN}")
        os.truncate(self.partial, self._bytes(rows))  # without the rows of a block that was not yet recorded
        with open(self.partial, "rb") as file:
            self.hash = hashlib.file_digest(file, "sha256")
        if self.hash.hexdigest() != kept["table"]:
            raise ProgressMismatch(f"{self.partial} is damaged, its {rows} rows were changed: {AGAIN}")
        if self.sums is not None:
            self.sums = _kept_sums(self._sums(frames), kept["sums"])
        self.frames, self.rows = frames, rows

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


def _kept_sums(path: Path, wanted: str) -> NDArray[np.float64]:
    try:
        sums = np.load(path)
        if _hash_of_array(sums) != wanted:
            raise ValueError("it was changed")
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ProgressMismatch(f"{path} is damaged: {AGAIN}. {error}") from error
    return sums


def _hash_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _hash_of_array(array: NDArray[np.float64]) -> str:
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + array.tobytes()).hexdigest()


def _write_csv(path: Path, scratch: Path, tables: Iterator[pd.DataFrame], rows: int, movie: tuple) -> None:
    with replacing(path) as temporary:
        with open(temporary, "wb") as out:
            for table in tables:
                write_localizations(scratch, table, movie[0])
                text = scratch.read_bytes()
                out.write(text.partition(b"\n")[2] if out.tell() else text)  # the header once
        with open(temporary, "rb") as written:
            _complete(path, rows, sum(1 for _ in written) - 1)


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
                    target[done : done + len(locs)] = locs[...]
                    done += len(locs)
            picasso.seal(out)
        _complete(path, rows, done)
        with replacing(path.with_suffix(".yaml")) as sidecar:
            sidecar.write_bytes(scratch.with_suffix(".yaml").read_bytes())


def _complete(path: Path, rows: int, written: int) -> None:
    """Raise ProgressMismatch, before a table takes its place, where it does not have all rows."""
    if written != rows:
        raise ProgressMismatch(f"{path} must get {rows} rows, got {written}: {AGAIN}")
