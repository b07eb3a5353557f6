"""Training scenes: the prior from which frames with known truth are drawn, on the device that trains."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._validate import choice, floating, image_shape, instance, non_negative, number, positive, whole
from . import structures
from .camera import Camera, expose, to_photoelectrons
from .distributions import Distribution, LogUniform, Uniform, draw, highest, lowest, number_or_distribution
from .kde import kde_image
from .psf import PSF, AnyPSF, Emitters, expected_photons, present_mask

LAYOUTS = ("frame", *structures.NAMES)

# the reference scene of the book, on which its networks are trained
DENSITY = LogUniform(0.1, 8.0)  # emitters per µm²
PHOTONS = Uniform(100.0, 2000.0)
BACKGROUND = Uniform(0.0, 20.0)  # photons per pixel
SIGMA = Uniform(0.92, 1.08)  # px


@dataclass(frozen=True)
class Scene:
    """What a training frame may look like. Every number may be fixed or have a distribution.

    density: emitters per µm², one value for each frame. photons: one value for each emitter, before the camera's
        quantum efficiency. background: photons per pixel, one value for each frame; gradient: its relative change
        from one end of the frame to the other, in a random direction. sigma: PSF sd, px, one value for each frame.
    ellipticity: σ_u/σ_v, of sds σ √ellipticity and σ/√ellipticity. psf: the PSF of all emitters, such as a
        `measured_psf.MeasuredPSF`; sigma then does not count.
    layout: where the emitters are: "frame", evenly, up to `margin` pixels beyond the border, from where some light
        still reaches the frame; or a name of `structures`.
    pixel_size_nm: turns the density into emitters per pixel.
    camera: numbers, or the maps of a whole sensor: every frame then is a random part of it.
    Raises ValueError for a value out of its range or an unknown name.
    """

    density: Distribution = DENSITY
    photons: Distribution = PHOTONS
    background: Distribution = BACKGROUND
    gradient: Distribution = 0.0
    sigma: Distribution = SIGMA
    ellipticity: float = 1.0
    psf: AnyPSF | None = None
    layout: str = "frame"
    margin: float = 3.0
    pixel_size_nm: float = 108.0
    camera: Camera = field(default_factory=Camera)

    def __post_init__(self) -> None:
        for name in ("density", "photons", "background", "gradient"):
            non_negative(name, lowest(number_or_distribution(name, getattr(self, name))))
        positive("sigma", lowest(number_or_distribution("sigma", self.sigma)))
        if highest(self.gradient) > 2:
            raise ValueError(f"gradient must be at most 2, where the background ends at 0, got {self.gradient}")
        number("ellipticity", self.ellipticity, positive)
        if self.psf is not None:
            instance("psf", self.psf, AnyPSF)
            if self.ellipticity != 1:
                raise ValueError(f"ellipticity must be 1 where the scene has a psf, got {self.ellipticity}")
        choice("layout", self.layout, LAYOUTS)
        number("margin", self.margin, non_negative)
        number("pixel_size_nm", self.pixel_size_nm, positive)
        instance("camera", self.camera, Camera)


@dataclass(frozen=True)
class FrameBatch:
    """Frames with their truth.

    electrons: (B, 1, H, W) photo-electrons. read_variance: (B, 1, H, W) photo-electrons². emitters: (B, E).
    sigma, background: (B,), the background at the frame's centre. expected: (B, H, W) photo-electrons ω.
    """

    electrons: Tensor
    read_variance: Tensor
    emitters: Emitters
    sigma: Tensor
    background: Tensor
    expected: Tensor

    def target(self, factor: int = 4, sigma: float = 1.0) -> Tensor:
        """The KDE that a network is trained on: (B, 1, f·H, f·W), peak 1 for each emitter."""
        shape = (self.electrons.shape[-2], self.electrons.shape[-1])
        return kde_image(self.emitters, shape, factor, sigma)


def draw_batch(scene: Scene, batch: int, shape: tuple[int, int], generator: torch.Generator) -> FrameBatch:
    """Draw frames from the prior, in float32, on the generator's device.

    The same generator state gives the same batch. Raises ValueError where the camera's maps are smaller than
    the frame, and what psf, camera and Scene raise.
    """
    instance("generator", generator, torch.Generator)
    height, width = image_shape("shape", shape)
    batch = whole("batch", batch)
    per_pixel = draw(scene.density, (batch,), generator) * (scene.pixel_size_nm / 1000) ** 2
    u, v, present = draw_positions(scene, per_pixel, (height, width), generator)
    photons = draw(scene.photons, u.shape, generator)
    return expose_batch(scene, Emitters(u, v, photons, present), (height, width), generator)


def expose_batch(scene: Scene, emitters: Emitters, shape: tuple[int, int], generator: torch.Generator) -> FrameBatch:
    """Frames of given emitters: only the PSF, the background, the part of the sensor and the noise are drawn.

    Raises ValueError as draw_batch does.
    """
    instance("generator", generator, torch.Generator)
    height, width = image_shape("shape", shape)
    batch = len(instance("emitters", emitters, Emitters))
    sigma = draw(scene.sigma, (batch,), generator)
    level = draw(scene.background, (batch,), generator)
    background = level[:, None, None] * _slope(scene.gradient, batch, (height, width), generator)
    stretch = math.sqrt(scene.ellipticity)
    psf = scene.psf or PSF(stretch * sigma[:, None], sigma[:, None] / stretch)
    expected = expected_photons(emitters, psf, (height, width), background)
    camera = _part(scene.camera, batch, (height, width), generator)
    electrons = to_photoelectrons(expose(expected, camera, generator), camera)
    variance = torch.as_tensor(camera.read_variance_electrons, dtype=electrons.dtype, device=electrons.device)
    return FrameBatch(
        electrons=electrons[:, None],
        read_variance=variance.expand(electrons.shape)[:, None],
        emitters=emitters,
        sigma=sigma,
        background=level,
        expected=camera.quantum_efficiency * expected,
    )


def draw_positions(
    scene: Scene, per_pixel: Tensor, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the emitters of B frames are, by the scene's layout: u, v and present, (B, E) each.

    per_pixel: (B,) mean number of emitters per pixel, of which each frame holds a Poisson number.
    """
    height, width = image_shape("shape", shape)
    instance("generator", generator, torch.Generator)
    per_pixel = floating("per_pixel", non_negative("per_pixel", per_pixel), 1)
    if scene.layout in structures.NAMES:
        return structures.draw(scene.layout, per_pixel, shape, generator)
    span_u, span_v = width + 2 * scene.margin, height + 2 * scene.margin
    counts = torch.poisson(per_pixel * (span_u * span_v), generator=generator)
    present = present_mask(counts)  # (B, E)
    a, b = torch.rand((2, *present.shape), generator=generator, dtype=torch.float32, device=generator.device)
    return a * span_u - scene.margin - 0.5, b * span_v - scene.margin - 0.5, present


def _slope(gradient: Distribution, batch: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, H, W): 1 at the centre, changing by `gradient` across the frame in a random direction."""
    if gradient == 0.0:
        return torch.ones(1, 1, 1, dtype=torch.float32, device=generator.device)
    change = draw(gradient, (batch,), generator)
    angle = 2 * math.pi * torch.rand(batch, generator=generator, dtype=torch.float32, device=generator.device)
    along_u, along_v = (_across(n, generator.device) for n in (shape[1], shape[0]))
    # |cos| + |sin| is the longest way across the square, from corner to corner
    cos, sin = (x / (angle.cos().abs() + angle.sin().abs()) for x in (angle.cos(), angle.sin()))
    along = cos[:, None, None] * along_u + sin[:, None, None] * along_v[:, None]  # (B, H, W), in [-1/2, 1/2]
    return (1 + change[:, None, None] * along).clamp(min=0)  # a change of 2 may end at −1e-7 by rounding


def _across(size: int, device: torch.device) -> Tensor:
    """-1/2 to 1/2 along a side of the frame; 0 where it is one pixel."""
    along = torch.linspace(-0.5, 0.5, size, dtype=torch.float32, device=device)
    return along if size > 1 else torch.zeros_like(along)


def _part(camera: Camera, batch: int, shape: tuple[int, int], generator: torch.Generator) -> Camera:
    """A random part of the sensor for each frame."""
    if camera.shape is None:
        return camera
    free = [full - size for full, size in zip(camera.shape, shape, strict=True)]
    if min(free) < 0:
        raise ValueError(f"shape must fit the camera's maps {camera.shape}, got {shape}")
    rows, columns = (torch.randint(n + 1, (batch,), generator=generator, device=generator.device) for n in free)
    return camera.crops(rows, columns, shape)
