"""The camera: its moments and distributions against closed forms, its maps, its limits.

Statistical limits follow from the sample size: 5 standard errors, which chance exceeds once in 1.7 million.
"""

import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from smlmtut import data
from smlmtut.imaging.camera import BRIGHTEST, Camera, expose, saturated, to_photoelectrons

RARE = 6e-7  # two-sided probability of 5 standard deviations
FRAMES = 20_000

real_maps = pytest.mark.skipif(
    not os.environ.get(data.FOLDER_VARIABLE), reason=f"{data.FOLDER_VARIABLE} names no folder with the real maps"
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(height: int = 3, width: int = 4, seed: int = 0) -> Camera:
    """A camera whose pixels all differ."""
    gain, offset, variance = torch.rand(3, height, width, generator=generator(seed), dtype=torch.float64)
    return Camera(1.5 + gain, 90 + 20 * offset, 10 + 200 * variance)


def real_sensor() -> Camera:
    maps: dict[str, Any] = data.calibration_maps()
    return Camera(**maps)


def as_map(value: float | Tensor) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def assert_moments(frames: Tensor, mean: Tensor, variance: Tensor, fourth_cumulant: Tensor) -> None:
    """Mean and variance over the first dimension, each pixel within 5 standard errors."""
    count = len(frames)
    assert ((frames.mean(0) - mean).abs() <= 5 * (variance / count).sqrt()).all()
    # Var[s²] = κ₄/n + 2V²/(n − 1)
    error = (fourth_cumulant / count + 2 * variance**2 / (count - 1)).sqrt()
    assert ((frames.var(0) - variance).abs() <= 5 * error).all()


# -- moments and distributions -----------------------------------------------------------------------------


@pytest.mark.parametrize("efficiency", [1.0, 0.6])
@pytest.mark.parametrize("rate", [0.0, 0.7, 12.0, 900.0])
def test_mean_and_variance_of_every_pixel(rate, efficiency):
    camera = maps()
    camera = Camera(camera.gain, camera.offset, camera.read_variance, quantum_efficiency=efficiency)
    light = rate * torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(3, 4)
    frames = expose(light.expand(FRAMES, 3, 4), camera, generator(1))
    omega, gain = efficiency * light, as_map(camera.gain)
    # cumulants add; all of a Poisson variable's are ω, and the normal one has no fourth
    assert_moments(frames, gain * omega + camera.offset, gain**2 * omega + camera.read_variance, gain**4 * omega)


def test_rounding_adds_a_twelfth():
    # read noise of 0.6 ADU: then the rounding error is even to e^(−2π² 0.36), and 1/12 is a fifth of the variance
    camera = Camera(1.0, 100.3, 0.36, integer=True)
    frames = expose(torch.zeros(FRAMES, 4, 4, dtype=torch.float64), camera, generator(2))
    full = torch.full((4, 4), 1.0, dtype=torch.float64)
    assert_moments(frames, 100.3 * full, (0.36 + 1 / 12) * full, 0 * full)


def test_counts_are_poisson():
    counts = expose(torch.full((FRAMES,), 3.7, dtype=torch.float64).reshape(-1, 1, 1), Camera.ideal(), generator(3))
    values = torch.arange(11)
    observed = [int((counts == k).sum()) for k in values] + [int((counts > 10).sum())]
    share = [*stats.poisson.pmf(values.numpy(), 3.7), stats.poisson.sf(10, 3.7)]
    assert sum(observed) == FRAMES  # nothing between the whole numbers
    assert stats.chisquare(observed, FRAMES * np.array(share) / sum(share)).pvalue > RARE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_brightest_light_that_is_allowed_is_counted_right(dtype):
    """Mean and variance within 5 standard errors, and 8 sds below the end of the 32-bit integers of a GPU."""
    rate = torch.full((1, 200, 200), BRIGHTEST, dtype=dtype)
    x = (expose(rate, Camera(), generator()).double() - BRIGHTEST) / math.sqrt(BRIGHTEST)
    assert abs(float(x.mean())) < 5 / 200 and abs(float(x.var()) - 1) < 5 * math.sqrt(2) / 200
    assert BRIGHTEST + 8 * math.sqrt(BRIGHTEST) < 2**32
    with pytest.raises(ValueError, match="rate must be at most 4e.09 photo-electrons in a pixel, got"):
        expose(1.001 * rate, Camera(), generator())
    expose(1.001 * rate, Camera(quantum_efficiency=0.5), generator())  # the limit is of electrons, not of light


@pytest.mark.parametrize("gain", [[[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], ">u2")])
def test_rows_in_lists_and_arrays_of_any_kind_are_maps_in_double_precision(gain):
    camera = Camera(gain)
    assert isinstance(camera.gain, Tensor) and camera.gain.dtype == torch.float64
    assert camera.gain.tolist() == [[1, 2], [3, 4]] and camera.shape == (2, 2)


def test_read_noise_is_normal():
    dark = expose(torch.zeros(FRAMES, 1, 1, dtype=torch.float64), Camera(2.0, 100.0, 30.0), generator(4)).flatten()
    assert stats.kstest(dark.numpy(), stats.norm(100, math.sqrt(30)).cdf).pvalue > RARE


def test_pixels_and_frames_are_independent():
    camera = maps(4, 4)
    frames = expose(torch.full((FRAMES, 4, 4), 5.0, dtype=torch.float64), camera, generator(5))
    z = (frames - frames.mean(0)) / frames.std(0)
    between = (z.reshape(FRAMES, 16).T @ z.reshape(FRAMES, 16)) / FRAMES
    off_diagonal = between[~torch.eye(16, dtype=torch.bool)]
    following = (z[1:] * z[:-1]).mean(0)
    assert max(float(off_diagonal.abs().max()), float(following.abs().max())) < 5 / math.sqrt(FRAMES)


def test_no_light_and_no_noise_is_the_offset():
    camera = Camera(maps().gain, maps().offset, 0.0)
    assert torch.equal(expose(torch.zeros(3, 4, dtype=torch.float64), camera, generator()), as_map(camera.offset))


def test_the_step_between_two_counts_is_the_gain():
    camera = Camera(2.17, 100.0)
    adu = expose(torch.full((500, 1, 1), 4.0, dtype=torch.float64), camera, generator())
    counts = (adu - 100) / 2.17
    assert torch.allclose(counts, counts.round(), rtol=0, atol=1e-12)


def test_the_seed_decides_and_the_global_state_is_left_alone():
    rate, camera = torch.full((2, 3, 4), 20.0, dtype=torch.float64), maps()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (expose(rate, camera, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (5, 2, 3, 4)])
def test_frames_have_the_shape_and_type_of_the_rate(shape, dtype):
    frames = expose(torch.ones(shape, dtype=dtype), maps(), generator())
    assert frames.shape == shape and frames.dtype == dtype


# -- rounding and saturation -------------------------------------------------------------------------------


def test_integer_adu_are_the_rounded_values_of_the_same_draw():
    rate, fine = torch.full((50, 3, 4), 20.0, dtype=torch.float64), maps()
    coarse = Camera(fine.gain, fine.offset, fine.read_variance, integer=True)
    assert torch.equal(expose(rate, coarse, generator(6)), expose(rate, fine, generator(6)).round())


@pytest.mark.parametrize("largest", [None, 4095.0])
def test_a_low_value_is_not_clipped(largest):
    camera = Camera(1.0, 0.0, 25.0, saturation=largest)
    dark = expose(torch.zeros(1000, 1, 1, dtype=torch.float64), camera, generator(7))
    assert (dark < 0).double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(1000))


@pytest.mark.parametrize("integer", [False, True])
def test_saturation_holds_at_the_top_and_only_there(integer):
    free = Camera(2.0, 100.0, 25.0, integer=integer)
    limited = Camera(2.0, 100.0, 25.0, saturation=4095.0, integer=integer)
    rate = torch.linspace(1900, 2100, 41, dtype=torch.float64).reshape(1, 1, 41).expand(50, 1, 41)  # 3900 to 4300 ADU
    raw, cut = expose(rate, free, generator(8)), expose(rate, limited, generator(8))
    above = raw >= 4095
    assert 0 < int(above.sum()) < above.numel()
    assert torch.equal(saturated(cut, limited), above)
    assert (cut[above] == 4095).all() and torch.equal(cut[~above], raw[~above])


def test_without_a_largest_value_nothing_is_saturated():
    assert not saturated(torch.full((2, 2), 1e9), Camera.ideal()).any()


# -- back to photo-electrons -------------------------------------------------------------------------------


@given(
    electrons=st.floats(-100, 1e5), gain=st.floats(0.1, 50), offset=st.floats(-200, 2000), variance=st.floats(0, 1e4)
)
def test_round_trip(electrons, gain, offset, variance):
    camera = Camera(gain, offset, variance)
    adu = torch.full((2, 2), gain * electrons + offset, dtype=torch.float64)
    rounding = 4 * torch.finfo(torch.float64).eps * (abs(electrons) + abs(offset) / gain)
    assert to_photoelectrons(adu, camera)[0, 0].item() == pytest.approx(electrons, abs=rounding)


def test_estimates_are_unbiased_with_the_variance_in_electrons():
    camera, omega = maps(), torch.linspace(0, 40, 12, dtype=torch.float64).reshape(3, 4)
    electrons = to_photoelectrons(expose(omega.expand(FRAMES, 3, 4), camera, generator(9)), camera)
    variance = omega + as_map(camera.read_variance_electrons)
    assert_moments(electrons, omega, variance, omega)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float16, torch.float32])
def test_raw_types_become_single_precision(dtype):
    electrons = to_photoelectrons(torch.full((3, 4), 120, dtype=dtype), Camera(2.0, 100.0))
    assert electrons.dtype == torch.float32 and (electrons == 10).all()


def test_a_camera_file_of_16_bits_is_read():
    raw = torch.from_numpy(np.full((3, 4), 40_100, dtype=np.uint16))
    assert (to_photoelectrons(raw, Camera(2.0, 100.0)) == 20_000).all()


def test_double_precision_stays():
    assert to_photoelectrons(torch.ones(3, 4, dtype=torch.float64), maps()).dtype == torch.float64


def test_read_variance_in_electrons():
    assert Camera(2.0, 100.0, 20.0).read_variance_electrons == 5.0
    camera = maps()
    expected = as_map(camera.read_variance).numpy() / as_map(camera.gain).numpy() ** 2
    assert np.array_equal(as_map(camera.read_variance_electrons).numpy(), expected)


# -- maps and crops ----------------------------------------------------------------------------------------


def test_numpy_maps_become_tensors_in_double_precision():
    arrays: dict[str, Any] = {"gain": np.full((2, 3), 2, dtype=np.float32), "offset": np.full((2, 3), 100)}
    camera = Camera(**arrays, read_variance=torch.zeros(2, 3, dtype=torch.float64))
    assert camera.shape == (2, 3)
    assert all(as_map(m).dtype == torch.float64 for m in (camera.gain, camera.offset, camera.read_variance))


def test_numbers_and_maps_mix():
    camera = Camera(2.0, as_map(maps().offset), 9.0)
    assert camera.shape == (3, 4)
    assert camera.crop(1, 1, (2, 2)).gain == 2.0
    assert expose(torch.ones(2, 3, 4), camera, generator()).shape == (2, 3, 4)


def test_a_camera_of_numbers_serves_any_frame():
    camera = Camera(2.0, 100.0, 5.0, quantum_efficiency=0.9, saturation=4095.0, integer=True)
    assert camera.shape is None
    assert camera.crop(1000, 1000, (2, 2)) == camera
    assert Camera.ideal() == Camera(1.0, 0.0, 0.0, 1.0, None, False)


@given(height=st.integers(1, 6), width=st.integers(1, 6), row=st.integers(0, 2), column=st.integers(0, 3))
def test_a_crop_is_that_part_of_each_map(height, width, row, column):
    camera = maps(8, 9)
    crop = camera.crop(row, column, (height, width))
    assert crop.shape == (height, width)
    for name in ("gain", "offset", "read_variance"):
        whole = as_map(getattr(camera, name))
        assert torch.equal(as_map(getattr(crop, name)), whole[row : row + height, column : column + width])


def test_a_crop_of_a_crop_and_what_it_keeps():
    full = maps(8, 9)
    camera = Camera(full.gain, full.offset, full.read_variance, 0.7, 4095.0, True)
    twice, once = camera.crop(1, 2, (6, 6)).crop(2, 1, (3, 4)), camera.crop(3, 3, (3, 4))
    assert torch.equal(as_map(twice.gain), as_map(once.gain))
    assert (twice.quantum_efficiency, twice.saturation, twice.integer) == (0.7, 4095.0, True)


def test_converting_a_crop_is_cropping_what_was_converted():
    camera = maps(8, 9)
    adu = expose(torch.full((2, 8, 9), 30.0, dtype=torch.float64), camera, generator(10))
    part = to_photoelectrons(adu[:, 2:5, 3:7], camera.crop(2, 3, (3, 4)))
    assert torch.equal(part, to_photoelectrons(adu, camera)[:, 2:5, 3:7])


@pytest.mark.parametrize("count", [0, 1, 7])
def test_crops_are_one_crop_for_each_frame(count):
    full = maps(8, 9)
    camera = Camera(full.gain, 100.0, full.read_variance, 0.7, 4095.0, True)
    rows, columns = (torch.randint(n, (count,), generator=generator(12)) for n in (6, 5))  # 8 − 3 + 1, 9 − 5 + 1
    parts = camera.crops(rows, columns, (3, 5))
    assert (parts.quantum_efficiency, parts.saturation, parts.integer, parts.offset) == (0.7, 4095.0, True, 100.0)
    assert parts.shape == (3, 5)
    assert as_map(parts.gain).shape == as_map(parts.read_variance).shape == (count, 3, 5)
    for b in range(count):
        one = camera.crop(int(rows[b]), int(columns[b]), (3, 5))
        assert torch.equal(as_map(parts.gain)[b], as_map(one.gain))
        assert torch.equal(as_map(parts.read_variance)[b], as_map(one.read_variance))


def test_crops_reach_the_last_pixel_and_not_beyond():
    camera = maps(8, 9)
    corner = camera.crops(torch.tensor([5]), torch.tensor([4]), (3, 5))
    assert as_map(corner.gain)[0, -1, -1] == as_map(camera.gain)[-1, -1]
    for name, rows, columns in (("rows", 6, 4), ("rows", -1, 4), ("columns", 5, 5), ("columns", 5, -1)):
        with pytest.raises(ValueError, match=rf"^{name} must lie in \[0, "):
            camera.crops(torch.tensor([0, rows]), torch.tensor([0, columns]), (3, 5))
    with pytest.raises(ValueError, match=r"^shape\[0\]"):
        camera.crops(torch.tensor([0]), torch.tensor([0]), (0, 5))
    with pytest.raises(ValueError, match="crops needs"):
        corner.crops(torch.tensor([0]), torch.tensor([0]), (2, 2))


def test_crops_of_a_camera_of_numbers_are_that_camera():
    camera = Camera(2.0, 100.0, 5.0)
    assert camera.crops(torch.tensor([7000]), torch.tensor([1]), (3, 5)) == camera


def test_frames_of_a_batch_of_parts_each_have_their_own_noise():
    full = maps(8, 9)
    rows, columns = torch.tensor([0, 5]), torch.tensor([3, 1])
    parts = full.crops(rows, columns, (3, 4))
    light = torch.tensor([5.0, 40.0], dtype=torch.float64)[:, None, None].expand(2, 3, 4)
    dice = generator(13)
    frames = torch.stack([expose(light, parts, dice) for _ in range(4000)])
    gain, variance = as_map(parts.gain), as_map(parts.read_variance)
    assert_moments(frames, gain * light + parts.offset, gain**2 * light + variance, gain**4 * light)
    electrons = to_photoelectrons(frames, parts)
    assert_moments(electrons, light, light + variance / gain**2, light)
    alone = full.crop(5, 1, (3, 4))
    assert torch.equal(to_photoelectrons(frames[0], parts)[1], to_photoelectrons(frames[0, 1], alone))
    assert torch.equal(saturated(frames, parts), torch.zeros_like(frames, dtype=torch.bool))


def test_maps_of_a_batch_are_checked_like_any():
    batch = maps(8, 9).crops(torch.tensor([0, 1]), torch.tensor([0, 1]), (3, 4))
    with pytest.raises(ValueError, match=r"^gain must be finite and positive"):
        Camera(0 * as_map(batch.gain), batch.offset, batch.read_variance)
    with pytest.raises(ValueError, match="must have one shape"):
        Camera(batch.gain, as_map(batch.offset)[:1], batch.read_variance)
    with pytest.raises(ValueError, match=r"^rate must have the camera maps' size"):
        expose(torch.ones(2, 3, 5), batch, generator())
    moved = batch.to(dtype=torch.float32)
    assert as_map(moved.gain).dtype == torch.float32 and moved.shape == (3, 4)


def test_moving_a_camera_to_another_type():
    camera = Camera(as_map(maps().gain), 100.0, 5.0, 0.8, 4095.0, True)
    moved = camera.to(dtype=torch.float32)
    assert as_map(moved.gain).dtype == torch.float32
    assert torch.equal(as_map(moved.gain), as_map(camera.gain).float())
    assert (moved.offset, moved.quantum_efficiency, moved.saturation, moved.integer) == (100.0, 0.8, 4095.0, True)


# -- the real sensor ---------------------------------------------------------------------------------------


@real_maps
def test_real_maps_have_the_figures_of_their_source():
    camera = real_sensor()
    assert camera.shape == (700, 700)
    noise = as_map(camera.read_variance_electrons).sqrt().numpy()
    # half a unit of the last digit that the list of sources gives
    assert np.median(as_map(camera.gain).numpy()) == pytest.approx(2.035, abs=0.0005)
    assert np.median(as_map(camera.offset).numpy()) == pytest.approx(113.34, abs=0.005)
    assert np.median(as_map(camera.read_variance).numpy()) == pytest.approx(22.3, abs=0.05)
    assert as_map(camera.read_variance).max().item() == pytest.approx(4411, abs=0.5)
    assert np.median(noise) == pytest.approx(2.32, abs=0.005)
    assert np.percentile(noise, 99) == pytest.approx(8.5, abs=0.05)
    assert noise.max() == pytest.approx(28.9, abs=0.05)


@real_maps
def test_moments_on_the_real_sensor_around_its_hottest_pixel():
    camera = real_sensor()
    row, column = divmod(int(as_map(camera.read_variance_electrons).argmax()), 700)
    crop = camera.crop(row - 2, column - 2, (5, 5))
    frames = expose(torch.full((FRAMES, 5, 5), 20.0, dtype=torch.float64), crop, generator(11))
    gain = as_map(crop.gain)
    assert_moments(frames, gain * 20 + crop.offset, gain**2 * 20 + crop.read_variance, gain**4 * 20)
