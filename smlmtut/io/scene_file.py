"""A training scene as a YAML file, which a user can read and change: units stand in the names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from .._files import replacing, with_suffix
from .._validate import instance, number, positive
from ..imaging.camera import Camera
from ..imaging.distributions import Distribution, LogUniform, Uniform, highest, lowest, scaled
from ..imaging.measured_psf import MeasuredPSF
from ..imaging.scenes import Scene
from .calibration import read_mapping
from .psf_file import psf_hash, read_psf, write_psf

YAML_SUFFIXES = (".yaml", ".yml")
KINDS = {"uniform": Uniform, "log_uniform": LogUniform}
SAID = {
    "pixel_size_nm": "side of a camera pixel",
    "sigma_px": "sd of the PSF, camera pixels",
    "ellipticity": "sigma along columns over sigma along rows",
    "photons": "of an emitter in a frame, before the camera's quantum efficiency",
    "background": "photons per pixel and frame",
    "density_per_um2": "emitters per µm² and frame",
}


@dataclass(frozen=True)
class SceneDescription:
    """A scene as its file has it. A quantity is a number, a Uniform or a LogUniform.

    sigma_px: camera pixels. photons: of an emitter in a frame; background: photons per pixel and frame, both before the
    camera's quantum efficiency. density_per_um2: emitters per µm² and frame. ellipticity: σ_u/σ_v. psf: that of all
    emitters; sigma_px then is the width that fits start from. Of weights it is a text, the hash of the PSF that they
    were trained with: that tells scenes apart, and the weights need no file beside them. measured: how the
    numbers were found: numbers, texts, lists and mappings of them. Nothing reads it.
    Raises ValueError for a value out of its range.
    """

    pixel_size_nm: float
    sigma_px: Distribution
    photons: Distribution
    background: Distribution
    density_per_um2: Distribution
    ellipticity: float = 1.0
    psf: MeasuredPSF | str | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number("ellipticity", self.ellipticity, positive)
        instance("measured", self.measured, Mapping)
        if not isinstance(self.psf, str | None):
            instance("psf", self.psf, MeasuredPSF)
        # whose checks are those of the other values
        (replace(self, psf=None) if isinstance(self.psf, str) else self).scene(Camera())

    @classmethod
    def of(cls, scene: Scene) -> "SceneDescription":
        """A scene as its camera sees it: N and b in photo-electrons, which is all that a network sees."""
        efficiency = scene.camera.quantum_efficiency
        photons, background = (scaled(x, efficiency) for x in (scene.photons, scene.background))
        numbers = (scene.pixel_size_nm, scene.sigma, photons, background, scene.density, scene.ellipticity)
        return cls(*numbers, scene.psf)  # type: ignore[arg-type]  # __post_init__ checks it

    @classmethod
    def read(cls, numbers: Mapping[str, Any]) -> "SceneDescription":
        """The scene of the keys and values of a file, or of `numbers`; ValueError for one that is wrong or missing."""
        needed = [f.name for f in fields(cls)][:5]
        missing = [name for name in needed if name not in numbers]
        if missing:
            raise ValueError(f"a scene must have the keys {', '.join(needed)}, got no {', '.join(missing)}")
        values: dict[str, Any] = {
            key: value if key in ("psf", "measured") else _read(key, value) for key, value in numbers.items()
        }
        return cls(**values)

    def scene(self, camera: Camera) -> Scene:
        """The scene to train on, as that camera sees it; ValueError where psf is only a hash."""
        return Scene(
            density=self.density_per_um2, photons=self.photons, background=self.background, sigma=self.sigma_px,
            pixel_size_nm=self.pixel_size_nm, ellipticity=self.ellipticity, camera=camera,
            psf=self.psf,  # type: ignore[arg-type]  # Scene refuses a text
        )  # fmt: skip

    def numbers(self) -> dict[str, Any]:
        """The keys of the file and their values, but for `measured`: what JSON can hold. Of a psf it is the hash."""
        psf = psf_hash(self.psf) if isinstance(self.psf, MeasuredPSF) else self.psf
        return {name: _plain(getattr(self, name)) for name in SAID} | ({"psf": psf} if psf else {})


def write_scene(path: str | Path, scene: SceneDescription) -> None:
    """Write a scene as YAML, with a comment for each quantity. An existing file is replaced whole or not at all.

    Its psf goes to a file beside it, scene.psf.npz for scene.yaml.
    Raises ValueError for another suffix than .yaml or .yml, where `measured` holds what YAML cannot, or where only the
    hash of the psf is known.
    """
    path = with_suffix("path", path, YAML_SUFFIXES)
    lines = ["# A scene to train on. A quantity is a number, {uniform: [low, high]} or {log_uniform: [low, high]}."]
    beside = path.with_suffix(".psf.npz")
    for name, value in replace(instance("scene", scene, SceneDescription), psf=None).numbers().items():
        text = ", ".join(f"{{{kind}: {ends}}}" for kind, ends in value.items()) if isinstance(value, dict) else value
        lines.append(f"{name}: {text}  # {SAID[name]}")
    more = {"psf": beside.name} if scene.psf else {}
    more |= {"measured": dict(scene.measured)} if scene.measured else {}
    try:
        told = yaml.safe_dump(more, allow_unicode=True, sort_keys=False, width=1000) if more else ""
    except yaml.YAMLError as error:
        raise ValueError(f"measured must hold numbers, texts, lists and mappings: {error}") from error
    if scene.psf:
        write_psf(beside, scene.psf)  # type: ignore[arg-type]  # which refuses a hash
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*lines, told]), encoding="utf-8")


def read_scene(path: str | Path) -> SceneDescription:
    """Read a scene from a YAML file; `SceneDescription.scene` makes of it what training takes.

    psf is the path of a file of `psf_file.write_psf`, relative to the folder of the YAML file, and is read, too.
    Raises ValueError, naming file, key and value, for a file that is not a YAML mapping, a key that is unknown or
    missing, or a value that is no number or distribution or out of its range; FileNotFoundError where there is no file.
    """
    path = Path(path)
    found = read_mapping(path, [f.name for f in fields(SceneDescription)], "sigma_px: 1.0")
    try:
        if "psf" in found:
            found["psf"] = _psf(path.parent, found["psf"])
        return SceneDescription.read(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _psf(folder: Path, value: Any) -> MeasuredPSF:
    """The PSF of a file whose path is relative to a folder."""
    if not isinstance(value, str) or not (folder / value).is_file():
        raise ValueError(f"psf must be the path of a file of `smlmtut psf`, got {value!r}: there is no such file")
    return read_psf(folder / value)


def _plain(value: Distribution) -> float | dict[str, list[float]]:
    """A number of five digits, or a distribution as the file has it."""
    if isinstance(value, Uniform | LogUniform):
        kind = "uniform" if isinstance(value, Uniform) else "log_uniform"
        return {kind: [_digits(lowest(value)), _digits(highest(value))]}
    return _digits(value)


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def _read(key: str, value: Any) -> Distribution:
    """The value of one key; ValueError where it is neither a number nor a distribution."""
    wanted = f"{key} must be a number, {{uniform: [low, high]}} or {{log_uniform: [low, high]}}, got {value!r}"
    if key in ("pixel_size_nm", "ellipticity"):
        wanted = f"{key} must be a number, got {value!r}"
    elif isinstance(value, dict):
        kind, ends = next(iter(value.items()), ("", None))
        if len(value) != 1 or kind not in KINDS or not isinstance(ends, list) or len(ends) != 2:
            raise ValueError(wanted)
        try:
            return KINDS[kind](*(_number(end, wanted) for end in ends))
        except ValueError as error:
            raise ValueError(f"{key}: {error}" if key not in str(error) else str(error)) from error
    return _number(value, wanted)


def _number(value: Any, wanted: str) -> float:
    """A number, also as a text: YAML 1.1 takes 2e3 for one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(wanted)
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(wanted) from error
