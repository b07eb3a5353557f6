"""From expected photons to raw frames and back: an sCMOS camera, pixel by pixel."""

from dataclasses import dataclass, fields, replace
from numbers import Real

import torch
from torch import Tensor

from .. import _validate as valid

Value = float | Tensor
# photo-electrons of a pixel. A GPU draws Poisson numbers as 32-bit integers, which end at 4.29e9; a CPU's spread is
# wrong from 1e14 (float32) or 1e16 (float64), and from 9.2e18 its numbers are negative.
BRIGHTEST = 4e9


@dataclass(frozen=True)
class Camera:
    """An sCMOS camera: x = g · Poisson(ω) + o + Normal(0, var), then rounding and saturation.

    gain g: ADU per photo-electron; offset o: ADU; read_variance var: ADU². Each is a number or an (H, W) map
        (a tensor, an array or nested lists); or (B, H, W), a part of the sensor of its own for every frame of a batch.
    quantum_efficiency: photo-electrons per photon, in (0, 1].
    saturation: the largest ADU value the camera reports, or None.
    integer: whether raw values are rounded to whole ADU.
    Raises ValueError for a gain ≤ 0, a negative variance, a value that is not finite, or maps whose shapes differ.
    """

    gain: Value = 1.0
    offset: Value = 0.0
    read_variance: Value = 0.0
    quantum_efficiency: float = 1.0
    saturation: float | None = None
    integer: bool = False

    def __post_init__(self) -> None:
        for name in ("gain", "offset", "read_variance"):
            value = getattr(self, name)
            if not isinstance(value, Tensor | Real):
                value = valid.tensor(name, value).double()
            if isinstance(value, Tensor):
                (valid.floating if value.is_floating_point() else valid.tensor)(name, value, 0, 2, 3)
            object.__setattr__(self, name, value)
        valid.positive("gain", self.gain)
        valid.finite("offset", self.offset)
        valid.non_negative("read_variance", self.read_variance)
        valid.number("quantum_efficiency", self.quantum_efficiency, valid.positive)
        valid.between("quantum_efficiency", self.quantum_efficiency, 0, 1)
        if self.saturation is not None:
            valid.number("saturation", self.saturation)
            if not bool(torch.all(torch.as_tensor(self.offset) < self.saturation)):
                raise ValueError(f"saturation must be above the offset, got {self.saturation} ADU")
        shapes = {name: tuple(m.shape) for name, m in self._maps().items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"gain, offset and read_variance maps must have one shape, got {shapes}")

    @classmethod
    def ideal(cls) -> "Camera":
        """A camera that counts photons: gain 1, no offset, no read noise."""
        return cls()

    @property
    def shape(self) -> tuple[int, int] | None:
        """(H, W) of the maps; None where all three are numbers, which serve any frame."""
        maps = list(self._maps().values())
        return (maps[0].shape[-2], maps[0].shape[-1]) if maps else None

    @property
    def read_variance_electrons(self) -> Value:
        """Read variance in photo-electrons²: var / g²."""
        return self.read_variance / self.gain**2

    def crop(self, row: int, column: int, shape: tuple[int, int]) -> "Camera":
        """The part of the sensor that starts at (row, column) and has shape (H, W).

        Raises ValueError where that part does not lie on the maps.
        """
        height, width = valid.image_shape("shape", shape)
        row, column = valid.whole("row", row, 0), valid.whole("column", column, 0)
        full = self.shape
        if full is not None and (row + height > full[0] or column + width > full[1]):
            raise ValueError(
                f"the crop of shape {(height, width)} at row {row}, column {column} "
                f"must lie on the maps, whose shape is {full}"
            )
        crops = {name: m[..., row : row + height, column : column + width] for name, m in self._maps().items()}
        return replace(self, **crops)

    def crops(self, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> "Camera":
        """One part of the sensor of shape (H, W) for every frame of a batch, from its (row, column) on.

        rows, columns: (B,) int64. Returns a camera whose maps are (B, H, W); numbers stay numbers.
        Raises ValueError where a part does not lie on the maps, or the maps are a batch already.
        """
        height, width = valid.image_shape("shape", shape)
        rows, columns = valid.integers("rows", rows, 1), valid.integers("columns", columns, 1)
        maps = self._maps()
        if any(m.ndim == 3 for m in maps.values()):
            raise ValueError("crops needs the (H, W) maps of a whole sensor, got a batch of parts")
        if maps:
            full = next(iter(maps.values())).shape
            for name, first, size, end in (("rows", rows, height, full[0]), ("columns", columns, width, full[1])):
                if len(first) and not (int(first.min()) >= 0 and int(first.max()) + size <= end):
                    raise ValueError(
                        f"{name} must lie in [0, {end - size}], got {int(first.min())} to {int(first.max())}"
                    )
        down = rows[:, None, None] + torch.arange(height, device=rows.device)[:, None]  # (B, H, 1)
        along = columns[:, None, None] + torch.arange(width, device=columns.device)  # (B, 1, W)
        return replace(self, **{name: m[down, along] for name, m in maps.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Camera":
        """The same camera with its maps on another device or in another floating-point type."""
        device = device if device is None else valid.device_here("device", device)
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved |= {name: moved[name].to(device=device, dtype=dtype) for name in moved if isinstance(moved[name], Tensor)}
        return Camera(**moved)

    def as_tensors(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(gain, offset, read_variance) as tensors of the type and on the device of another tensor."""
        values = (self.gain, self.offset, self.read_variance)
        gain, offset, variance = (torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in values)
        return gain, offset, variance

    def _maps(self) -> dict[str, Tensor]:
        values = {name: getattr(self, name) for name in ("gain", "offset", "read_variance")}
        return {name: m for name, m in values.items() if isinstance(m, Tensor) and m.ndim >= 2}


def expose(rate: Tensor, camera: Camera, generator: torch.Generator | None = None) -> Tensor:
    """Draw raw frames from expected photons.

    rate: (..., H, W) expected photons on each pixel during the exposure, float32 or float64.
    Returns (..., H, W) ADU of the same type. A value below the offset, even below 0, is kept as it is: the
    offset of a real camera is set high enough that its converter hardly ever sees one.
    Raises ValueError where the rate is negative, not finite, or above BRIGHTEST photo-electrons, beyond which they
    cannot be counted on every device; or where its size is not that of the camera's maps.
    """
    rate = valid.floating("rate", valid.non_negative("rate", rate))
    check_frame_size("rate", rate, camera)
    gain, offset, variance = camera.as_tensors(rate)
    mean = camera.quantum_efficiency * rate
    if mean.numel() and float(mean.max()) > BRIGHTEST:
        raise ValueError(f"rate must be at most {BRIGHTEST:g} photo-electrons in a pixel, got {float(mean.max()):g}")
    electrons = torch.poisson(mean, generator=generator)
    noise = torch.randn(rate.shape, generator=generator, dtype=rate.dtype, device=rate.device)
    adu = gain * electrons + offset + variance.sqrt() * noise
    if camera.integer:
        adu = adu.round()
    return adu if camera.saturation is None else adu.clamp(max=camera.saturation)


def to_photoelectrons(adu: Tensor, camera: Camera) -> Tensor:
    """Raw frames in photo-electrons: (x − o) / g.

    adu: (..., H, W). Returns a floating-point tensor of the same shape: float64 stays, all else becomes
    float32. Saturated pixels keep their (too low) value: find them with `saturated`.
    Raises ValueError where a value is not finite or the size is not that of the camera's maps.
    """
    adu = valid.tensor("adu", valid.finite("adu", adu))
    check_frame_size("adu", adu, camera)
    x = adu if adu.dtype == torch.float64 else adu.to(torch.float32)
    gain, offset, _ = camera.as_tensors(x)
    return (x - offset) / gain


def saturated(adu: Tensor, camera: Camera) -> Tensor:
    """Bool (..., H, W): pixels that reached the camera's largest value, whose true signal is unknown."""
    adu = valid.tensor("adu", adu)
    valid.instance("camera", camera, Camera)
    if camera.saturation is None:
        return torch.zeros_like(adu, dtype=torch.bool)
    return valid.signed(adu) >= camera.saturation


def check_frame_size(name: str, frame: Tensor, camera: Camera) -> None:
    """ValueError where the last two dimensions of a frame are not the camera's maps'."""
    if valid.instance("camera", camera, Camera).shape is not None and tuple(frame.shape[-2:]) != camera.shape:
        raise ValueError(
            f"{name} must have the camera maps' size {camera.shape} in its last two dimensions, "
            f"got shape {tuple(frame.shape)}; use camera.crop for a part of the sensor"
        )
