"""A measured PSF as a file of numpy: its samples and how many there are to a pixel."""

import hashlib
from pathlib import Path

import numpy as np

from .._files import replacing, with_suffix
from .._validate import instance
from ..imaging.measured_psf import MeasuredPSF

PSF_SUFFIXES = (".npz",)


def write_psf(path: str | Path, psf: MeasuredPSF) -> None:
    """Write a PSF, to the last bit: `samples` (n, m) float64 and `oversampling`, as in MeasuredPSF.

    An existing file is replaced whole or not at all. Raises ValueError for another suffix than .npz.
    """
    path = with_suffix("path", path, PSF_SUFFIXES)
    samples = instance("psf", psf, MeasuredPSF).samples.numpy()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, samples=samples, oversampling=psf.oversampling)


def read_psf(path: str | Path) -> MeasuredPSF:
    """Read a PSF from a file of `write_psf`.

    Raises ValueError, naming the file, where it is none, lacks an array or holds what MeasuredPSF refuses;
    FileNotFoundError where there is no file.
    """
    with open(path, "rb") as file:
        try:
            found = np.load(file)
            return MeasuredPSF(found["samples"], found["oversampling"].item())
        except Exception as error:  # numpy and zipfile have many kinds for a file that is damaged or another
            raise ValueError(f"{path} must be a PSF of `smlmtut psf`, samples and oversampling: {error}") from error


def psf_hash(psf: MeasuredPSF) -> str:
    """SHA-256 of samples and oversampling, by which weights know the PSF that they were trained with."""
    return hashlib.sha256(psf.samples.numpy().tobytes() + str(psf.oversampling).encode()).hexdigest()
