"""DeepSTORM: sizes, symmetries, receptive field, the range of its output, and what it takes for input."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.networks.convolution import convolution, resized
from smlmtut.networks.deepstorm import (
    ANSCOMBE,
    NOISE_SCALE,
    SIGNAL_SCALE,
    DeepSTORM,
    estimate_kde,
    network_input,
)
from smlmtut.networks.inputs import input_electrons

TINY = {"channels": 4, "dilations": (1, 2), "upsampled": (4, 3), "predicting": 1}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def alive(seed=0, **architecture):
    """A small network in double precision whose head is not zero: every weight plays a part."""
    torch.manual_seed(seed)
    network = DeepSTORM(**(TINY | architecture)).double()
    torch.nn.init.normal_(network.head.weight, std=0.3)
    torch.nn.init.normal_(network.get_parameter("head.bias"), std=0.01)
    return network


def frames(batch, height, width, seed=0):
    return 30 * torch.rand(batch, 1, height, width, generator=generator(seed), dtype=torch.float64)


# -- sizes and symmetries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 13), (64, 64)])
def test_any_frame_size(shape):
    network = DeepSTORM(**TINY)
    y = network(torch.ones(2, 1, *shape), 4.0)
    assert y.shape == (2, 1, 4 * shape[0], 4 * shape[1]) and y.dtype == torch.float32


def test_a_new_network_says_zero():
    assert float(estimate_kde(DeepSTORM(**TINY), frames(2, 8, 9)[:, 0], Camera(2.0, 10.0, 5.0)).abs().max()) == 0
    network = DeepSTORM(**TINY)
    network(frames(2, 8, 9).float(), 3.0).sum().backward()
    slope = network.head.weight.grad
    assert slope is not None and float(slope.abs().min()) > 0  # and it can learn


@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, 1), (3, 2)])
def test_a_step_of_the_camera_is_four_of_the_kde(down, right):
    network, x = alive(), frames(1, 20, 22)
    reach = network.reach
    y = network(x, 2.0)
    moved = network(x.roll((down, right), (2, 3)), 2.0).roll((-4 * down, -4 * right), (2, 3))
    inner = slice(4 * (reach + 3), -4 * (reach + 3))
    torch.testing.assert_close(moved[..., inner, inner], y[..., inner, inner], rtol=0, atol=1e-12)  # roundings
    assert float(y[..., inner, inner].detach().std()) > 1e-3


def test_frames_of_a_batch_do_not_see_each_other():
    network, x = alive(), frames(3, 9, 8)
    torch.testing.assert_close(network(x, 2.0)[1:2], network(x[1:2], 2.0), rtol=0, atol=1e-12)


# -- receptive field ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("predicting", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("dilations", [(1,), (1, 2), (3, 1, 2)])
def test_reach_is_the_receptive_field(predicting, dilations):
    network = alive(predicting=predicting, dilations=dilations)
    for parameter in network.parameters():  # no ReLU closes and nothing cancels: what can be reached is reached
        torch.nn.init.constant_(parameter, 0.01)
    size = 2 * network.reach + 5
    middle = size // 2
    x = frames(1, size, size).requires_grad_()
    # the farthest are seen from the outer super-resolved pixels of the camera pixel
    network.raw(x, 2.0)[0, 0, 4 * middle : 4 * middle + 4, 4 * middle : 4 * middle + 4].sum().backward()
    assert x.grad is not None
    seen = x.grad[0, 0] != 0
    wanted = torch.zeros(size, size, dtype=torch.bool)
    wanted[middle - network.reach : middle + network.reach + 1, middle - network.reach : middle + network.reach + 1] = (
        True
    )
    # the corners of the square as well, since each convolution has its own
    assert torch.equal(seen, wanted)


def test_nothing_beyond_the_reach_matters():
    network, x = alive(), frames(1, 31, 31)
    far = x.clone()
    square = slice(15 - network.reach, 16 + network.reach)
    outside = torch.ones(31, 31, dtype=torch.bool)
    outside[square, square] = False
    far[..., outside] = 1e4
    torch.testing.assert_close(
        network(far, 2.0)[..., 60:64, 60:64], network(x, 2.0)[..., 60:64, 60:64], rtol=0, atol=1e-12
    )


def test_the_shipped_size():
    network = DeepSTORM()
    # stem 1, dilations 11, then 3/4 + 1/4 + 1/2 camera pixels, of which the last is reached in part
    assert network.reach == 1 + 11 + 2
    c, k = 64, 9
    convolutions = [(2, c), *[(c, c)] * 6, (c, 32), (32, 8), *[(8, 8)] * 3]
    wanted = sum(k * a * b + b for a, b in convolutions) + 8 + 1
    assert sum(p.numel() for p in network.parameters()) == wanted


# -- precision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "digits"), [("bf16", 8), ("fp16", 11)])
def test_lower_precision_rounds_and_no_more(precision, digits):
    """Each of the 7 layers rounds what it gets, its weights and what it gives, to one part in 2^digits, at random.

    The roundings of a layer add in quadrature to √3 / √12 · 2^(1 − digits) of the size of its numbers, those of the
    layers to √7 times that; a difference between large numbers loses a little more, for which a factor 4 is left.
    """
    network, adu = alive().float().requires_grad_(False), 100 + 30 * torch.rand(3, 12, 13, generator=generator(1))
    full = estimate_kde(network, adu, Camera(1.5, 100.0, 4.0))
    less = estimate_kde(network, adu, Camera(1.5, 100.0, 4.0), precision)
    assert less.dtype == torch.float32
    error, size = (less - full).square().mean().sqrt(), full.square().mean().sqrt()
    rounding = 2.0**-digits * 7**0.5
    assert rounding / 10 < error / size < 4 * rounding  # below the first it would not have been used


def test_no_plateaus_in_bf16():
    """The last layer is computed in float32: neighbours are hardly ever equal, as they often are once rounded."""
    network, x = alive().float().requires_grad_(False), frames(2, 16, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = network.raw(x, 2.0)
    equal, rounded = (int((z[..., 1:] == z[..., :-1]).sum()) for z in (y, y.bfloat16()))
    assert y.dtype == torch.float32 and rounded > 10
    assert equal < rounded / 10


def test_an_unknown_precision():
    with pytest.raises(ValueError, match="precision must be one of 'no', 'bf16', 'fp16', got 'auto'"):
        estimate_kde(DeepSTORM(**TINY), torch.ones(1, 4, 4), Camera(), "auto")


# -- range of the output -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ceiling", [4.0, 1.5])
def test_the_hardtanh_ends_at_the_ceiling(ceiling):
    network, x = alive(ceiling=ceiling), frames(2, 8, 8)
    torch.nn.init.normal_(network.head.weight, std=30.0, generator=generator(2))
    y, raw = network(x, 2.0), network.raw(x, 2.0)
    assert float(raw.detach().abs().max()) > 1
    torch.testing.assert_close(y, ceiling * raw.clamp(-1, 1), rtol=1e-14, atol=0)
    torch.nn.init.constant_(network.get_parameter("head.bias"), 1e6)
    assert (network(x, 2.0) == ceiling).all()
    torch.nn.init.constant_(network.get_parameter("head.bias"), -1e6)
    assert (network(x, 2.0) == -ceiling).all()


# -- what the network sees ---------------------------------------------------------------------------------


def signal(electrons, variance):
    return SIGNAL_SCALE * network_input(electrons, variance)[:, :1]


LIGHTS, VARIANCES = (0.0, 3.0, 20.0, 300.0), (0.0, 2.0, 25.0, 400.0)


# without light and without read noise there is nothing to even out
@pytest.mark.parametrize(("light", "variance"), list(itertools.product(LIGHTS, VARIANCES))[1:])
def test_the_signal_has_unit_noise(light, variance):
    n = 200_000
    x = torch.poisson(torch.full((1, 1, 1, n), light, dtype=torch.float64), generator=generator(1))
    x += math.sqrt(variance) * torch.randn(1, 1, 1, n, generator=generator(2), dtype=torch.float64)
    s = signal(x, variance)
    sd = float(s.std())
    # Where the read noise dominates, the square root is nearly straight over its two sd only from v = 2 on; the exact
    # sd by quadrature, with the values below −v − 3/8 set to it, is the reference
    k = np.arange(0, int(light + 12 * math.sqrt(light) + 30))
    weight = (
        np.exp(k * math.log(light) - light - np.array([math.lgamma(i + 1) for i in k])) if light else (k == 0) * 1.0
    )
    z, w = np.polynomial.hermite_e.hermegauss(200)
    values = k[:, None] + math.sqrt(variance) * z + variance + ANSCOMBE
    exact = 2 * np.sqrt(values.clip(0)) - 2 * math.sqrt(variance + ANSCOMBE)
    p = weight[:, None] * w / w.sum()
    mean = (p * exact).sum()
    wanted = math.sqrt((p * (exact - mean) ** 2).sum())
    fourth = (p * (exact - mean) ** 4).sum()
    error = math.sqrt((fourth - wanted**4) / n) / (2 * wanted)
    # 5 standard errors, and 0.2 % for the quadrature at the square root's foot
    assert sd == pytest.approx(wanted, abs=5 * error + 2e-3)
    # "about 1": the delta method's remainder falls with 1 / (light + v)
    assert sd == pytest.approx(1, abs=0.5 / (light + variance) + 5 * error)


def test_a_dark_pixel_is_zero_and_light_raises_it():
    dark = network_input(torch.zeros(1, 1, 1, 5), torch.tensor([0.0, 1.0, 5.0, 30.0, 1e6]))
    assert float(dark[:, 0].abs().max()) == 0
    steps = signal(torch.linspace(-3, 400, 500)[None, None, None], 2.0).diff()
    assert (steps[..., 1:] > 0).all() and (steps >= 0).all()


def test_a_hot_pixel_has_no_say():
    # s = 2x / (√(x + v + 3/8) + √(v + 3/8)) → x / √v
    for v in (1e2, 1e4, 1e8):
        s = float(signal(torch.full((1, 1, 1, 1), 500.0, dtype=torch.float64), v))
        assert s == pytest.approx(1000 / (math.sqrt(500 + v + ANSCOMBE) + math.sqrt(v + ANSCOMBE)), rel=1e-9)
        assert s < 500 / math.sqrt(v)
    x, v = torch.full((1, 1, 9, 9), 5.0), torch.full((1, 1, 9, 9), 2.0)
    hot_x, hot_v = x.clone(), v.clone()
    hot_x[..., 4, 4], hot_v[..., 4, 4] = 60.0, 800.0  # two sd of its read noise above: nothing unusual
    trusting = network_input(hot_x, v)[:, 0] - network_input(x, v)[:, 0]
    warned = network_input(hot_x, hot_v)[:, 0] - network_input(x, hot_v)[:, 0]
    assert SIGNAL_SCALE * float(warned.abs().max()) < 2  # sd, as many as it is away
    assert SIGNAL_SCALE * float(trusting.abs().max()) > 10  # 2 √62.375 − 2 √7.375


def test_the_second_channel_is_the_read_noise():
    v = torch.rand(2, 1, 4, 5, generator=generator(), dtype=torch.float64) * 50
    both = network_input(frames(2, 4, 5), v)
    assert both.shape == (2, 2, 4, 5)
    torch.testing.assert_close(both[:, 1:], v.sqrt() / NOISE_SCALE, rtol=1e-14, atol=0)
    assert torch.equal(network_input(frames(2, 4, 5), 9.0)[:, 1], torch.full((2, 4, 5), 3 / NOISE_SCALE).double())


# -- raw frames --------------------------------------------------------------------------------------------


def maps(height=9, width=11):
    gain, offset, variance = torch.rand(3, height, width, generator=generator(3), dtype=torch.float64)
    return Camera(1.5 + gain, 90 + 20 * offset, 5 + 100 * variance)


@pytest.mark.parametrize("camera", [Camera(2.1, 101.0, 12.0), maps()], ids=["numbers", "maps"])
def test_raw_frames_are_the_electrons_path(camera):
    network = alive().float()
    adu = 100 + 200 * torch.rand(3, 9, 11, generator=generator(4), dtype=torch.float64)
    electrons = to_photoelectrons(adu, camera).float()
    variance = torch.as_tensor(camera.read_variance_electrons).float().expand(3, 9, 11)
    y = estimate_kde(network, adu, camera)
    assert y.shape == (3, 1, 36, 44) and y.dtype == torch.float32 and not y.requires_grad
    assert torch.equal(y, network(electrons[:, None], variance[:, None]).detach())
    assert float(y.std()) > 1e-3


def test_gain_and_offset_do_not_matter():
    network, omega = alive().float(), frames(2, 9, 11)[:, 0]
    wanted = estimate_kde(network, omega, Camera(1.0, 0.0, 6.0))
    other = maps()
    assert isinstance(other.gain, torch.Tensor)
    adu = other.gain * omega + other.offset
    found = estimate_kde(network, adu, Camera(other.gain, other.offset, 6.0 * other.gain**2))
    # float32: seven layers of sums round to some 1e-6 of numbers near 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_camera_counts_of_16_bits():
    adu = torch.from_numpy(np.full((1, 4, 4), 140, dtype=np.uint16))
    network = alive().float()
    assert torch.equal(
        estimate_kde(network, adu, Camera(2.0, 100.0, 4.0)), network(torch.full((1, 1, 4, 4), 20.0), 1.0)
    )


# -- architecture ------------------------------------------------------------------------------------------


def test_architecture_and_weights_there_and_back():
    network = alive(sigma=1.2, ceiling=3.0).float()
    again = DeepSTORM(**json.loads(json.dumps(network.architecture)))
    assert again.architecture == network.architecture
    assert (again.sigma, again.ceiling, again.reach) == (1.2, 3.0, network.reach)
    again.load_state_dict(network.state_dict())
    x = frames(1, 6, 7).float()
    assert torch.equal(again(x, 2.0), network(x, 2.0))
    assert DeepSTORM(**DeepSTORM().architecture).architecture == DeepSTORM().architecture


BAD = [
    ({"channels": 0}, "channels", "got 0"),
    ({"channels": 2.5}, "channels", "got 2.5"),
    ({"dilations": (1, 0)}, "dilations", "got 0"),
    ({"dilations": ()}, "dilations", "[]"),
    ({"upsampled": (4,)}, "upsampled", "(4,)"),
    ({"upsampled": (4, -1)}, "upsampled", "-1"),
    ({"predicting": 0}, "predicting", "got 0"),
    ({"sigma": 0.0}, "sigma", "got 0"),
    ({"ceiling": math.nan}, "ceiling", "nan"),
]


@pytest.mark.parametrize(("options", "argument", "says"), BAD)
def test_bad_architecture(options, argument, says):
    with pytest.raises(ValueError) as error:
        DeepSTORM(**(TINY | options))
    assert argument in str(error.value) and says in str(error.value)


@pytest.mark.parametrize(
    ("adu", "camera", "says"),
    [
        (torch.zeros(4, 4), Camera(), "3 dimensions"),
        (torch.zeros(0, 4, 4), Camera(), "(0, 4, 4)"),
        (torch.zeros(1, 1, 4, 4), Camera(), "3 dimensions"),
        (torch.full((1, 4, 4), math.nan), Camera(), "nan"),
        (torch.full((1, 4, 4), math.inf), Camera(), "inf"),
        (torch.zeros(1, 4, 5), maps(4, 4), "(4, 4)"),
    ],
)
def test_bad_frames(adu, camera, says):
    with pytest.raises(ValueError) as error:
        estimate_kde(DeepSTORM(**TINY), adu, camera)
    assert str(error.value).startswith("adu") and says in str(error.value)


def test_seeds_differ_and_repeat():
    a, b, c = (alive(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(x, y) for x, y in itertools.zip_longest(a.values(), c.values()))


@pytest.mark.parametrize("shape", [(1, 1), (5, 8)])
def test_resizing_is_repeating_pixels_and_convolving(shape):
    """As chapter 6 writes it; also its gradients, by which weights and features learn."""
    torch.manual_seed(0)
    layer = convolution(5, 3).double()
    torch.nn.init.normal_(layer.get_parameter("bias"))
    h = torch.randn(2, 5, *shape, dtype=torch.float64, requires_grad=True)
    pull, found = torch.randn(2, 3, *(2 * n for n in shape), dtype=torch.float64), []
    for y in (resized(h, layer), layer(h.repeat_interleave(2, 2).repeat_interleave(2, 3))):
        wanted = (h, *layer.parameters())
        found.append((y, *torch.autograd.grad((y * pull).sum(), wanted)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [8, 24, 32])
def test_gradients_in_bf16_are_those_of_float32_roughly(channels):
    """Also for the features that the CPU's kernel gets wrong, see convolution.Convolution."""
    gradients = []
    for lower in (False, True):
        network = convolution(channels, channels, dilation=2)
        drawn = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(torch.randn(p.shape, generator=drawn))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(2, channels, 16, 16, generator=drawn).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            network(x).float().square().mean().backward()
        assert network.weight.grad is not None
        gradients.append(network.weight.grad)
    # 8 bits of each product: 2⁻⁸ of the largest gradient is a fair size of the error of a sum; four of it
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=float(gradients[0].abs().max()) / 64)


@pytest.mark.parametrize("channels", [8, 24, 32])
def test_gradients_of_resizing_in_bf16(channels):
    """The kernels of a transposed convolution are others."""
    torch.manual_seed(0)
    layer, gradients = convolution(channels, 8), []
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, channels, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    for lower in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            loss = resized(x, layer).float().square().mean()
        gradients.append(torch.autograd.grad(loss, (x, *layer.parameters())))
    for exact, rounded in zip(*gradients, strict=True):
        torch.testing.assert_close(rounded, exact, rtol=0, atol=float(exact.abs().max()) / 64)


def test_the_input_gives_the_electrons_back():
    x = torch.tensor([-1.5, 0.0, 3.0, 2e4]).reshape(1, 1, 1, 4).double()
    v = torch.tensor([1.4, 0.0, 9.0, 100.0]).reshape(1, 1, 1, 4).double()
    electrons, variance = input_electrons(network_input(x, v))
    assert torch.allclose(electrons, x[:, 0]) and torch.allclose(variance, v[:, 0])
    lowest, _ = input_electrons(network_input(torch.full((1, 1, 1, 1), -50.0), 2.0))
    assert float(lowest) == pytest.approx(-2.375, abs=1e-5)
