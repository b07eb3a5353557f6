"""Every public function and class that takes arrays, with good arguments, on any device: one table for the tests."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from smlmtut._random import step_generator
from smlmtut.diffusion import NoiseSchedule, ancestral, ddim, dpm_solver, elbo, process
from smlmtut.diffusion.gaussian_mixture import GaussianMixture
from smlmtut.diffusion.samplers import sample
from smlmtut.diffusion.schedule import from_log_snr, log_snr
from smlmtut.estimation import beads, closed_forms, fisher, fit, joint, likelihood, spots
from smlmtut.evaluation import against_exact, calibration, localization, proper_scores, resolution
from smlmtut.imaging import blinking, first_guess, kde, scenes, simulate, structures
from smlmtut.imaging.camera import Camera, expose, saturated, to_photoelectrons
from smlmtut.imaging.measured_psf import MeasuredPSF
from smlmtut.imaging.psf import PSF, Emitters, expected_photons, pixel_integral, pixel_integral_gradient, rate_gradient
from smlmtut.networks import conformal, emitter_set, engression, inputs, recipes, rivals
from smlmtut.networks.cddpm import ConditionalDiffusion, DiffusionBatch, frame_input, pixel_weight, sample_kde
from smlmtut.networks.condition import FrameFit, condition_on, fitted_kde
from smlmtut.networks.deepstorm import DeepSTORM, estimate_kde, network_input
from smlmtut.networks.unet import SelfAttention, embed_log_snr
from smlmtut.posterior import convergence, many, modes, one

CAMERA = Camera(2.0, 100.0, 5.0, saturation=180.0)
ROUND = PSF(1.0)
CHAINS: dict[str, Any] = {"chains": 2, "draws": 4, "thin": 1, "burn_in": 2}


@dataclass(frozen=True)
class Row:
    """name: module.function. call: with the arrays of `arrays` by keyword.

    anything: arrays of any rank do. truth: arrays of truth values do. optional: None is a default.
    array: the result for an array is an array, as that for a tensor is a tensor.
    """

    name: str
    call: Callable[..., Any]
    arrays: dict[str, Tensor]
    anything: tuple[str, ...] = ()
    truth: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    array: bool = False


def small_deepstorm() -> DeepSTORM:
    """A network whose ŷ is not 0, as that of a new one is; always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DeepSTORM(4, (1,), (4, 4), 1)
        torch.nn.init.normal_(network.head.weight)
    return network


def small_diffusion() -> ConditionalDiffusion:
    """A diffusion model whose output depends on its input, as that of a new one does not; always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = ConditionalDiffusion(channels=(8, 8))
        torch.nn.init.normal_(network.unet.head.weight, std=0.1)
    return network


def spot_frames(device: str = "cpu") -> Tensor:
    """A frame with a spot in the middle: (1, 9, 9) e⁻."""
    one_emitter = Emitters.single(4, 4, 500.0).to(device)
    return simulate.frames(one_emitter, ROUND, Camera(), (9, 9), 5.0, torch.Generator(device).manual_seed(0)).round()


def table(device: str = "cpu") -> list[Row]:
    """The table with all tensors and generators on a device."""
    rows: list[Row] = []

    def row(name: str, call: Callable[..., Any], arrays: dict[str, Tensor], **more: Any) -> None:
        rows.append(Row(name, call, arrays, **more))

    def dice(seed: int = 0) -> torch.Generator:
        return torch.Generator(device).manual_seed(seed)

    def some(*shape: int, low: float = 0.5, high: float = 2.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=dice(len(shape)), dtype=torch.float64, device=device)

    def tensor(values: list, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    one_emitter = Emitters.single(4, 4, 500.0).to(device)
    maps = Camera(some(9, 9), 100.0, some(9, 9))
    two = Emitters(some(2, 3, low=2, high=6), some(2, 3, low=2, high=6), some(2, 3, low=200, high=900))
    network = small_deepstorm().to(device)
    frames = spot_frames(device)
    adu = (2 * frames + 100).expand(2, 9, 9).contiguous()
    grid = one.grid_posterior(frames[0])
    draws = many.chain_posterior(frames, [0.5, 0.5], dice(), **CHAINS)
    theta = grid.sample(3, torch.Generator().manual_seed(0)).to(device)  # a posterior on a grid lies on the CPU
    x, rate, noise = some(4, low=100, high=120), some(4, low=1, high=9), some(9, 9)

    # -- imaging -----------------------------------------------------------------------------------------------
    row(
        "psf.Emitters",
        Emitters,
        {"u": two.u, "v": two.v, "photons": two.photons, "present": two.mask},
        truth=("present",),
        optional=("present",),
    )
    row(
        "psf.PSF",
        lambda sigma, sigma_v: pixel_integral(two.u, PSF(sigma, sigma_v).sigma, 5),
        {"sigma": some(2, 3), "sigma_v": some(2, 3)},
        anything=("sigma", "sigma_v"),
        optional=("sigma_v",),
    )
    for function in (pixel_integral, pixel_integral_gradient):
        row(
            f"psf.{function.__name__}",
            partial(function, size=5),
            {"position": two.u, "sigma": some(2, 3)},
            anything=("position",),
        )
    bead = expected_photons(one_emitter, ROUND, (9, 9))[0]
    measured = lambda psf: rate_gradient(two, psf, (9, 9))  # noqa: E731
    row(
        "measured_psf.MeasuredPSF",
        lambda samples: measured(MeasuredPSF(samples, 2)),
        {"samples": 4 * bead / bead.sum()},
    )
    row("measured_psf.MeasuredPSF.from_image", lambda image: measured(MeasuredPSF.from_image(image)), {"image": bead})
    sampled = MeasuredPSF(4 * bead / bead.sum(), 2)
    for psf in (ROUND, sampled):
        row("psf.expected_photons", partial(expected_photons, two, psf, (9, 9)), {"background": noise})
    row("psf.rate_gradient", lambda sigma: rate_gradient(two, PSF(sigma), (9, 9)), {"sigma": some(2, 3)})
    row("camera.Camera", Camera, {name: some(9, 9) for name in ("gain", "offset", "read_variance")})
    row(
        "camera.Camera.crops",
        lambda rows, columns: maps.crops(rows, columns, (3, 3)),
        {"rows": tensor([0, 2]), "columns": tensor([1, 6])},
    )
    row("camera.expose", lambda rate: expose(rate, CAMERA, dice()), {"rate": some(2, 9, 9)}, anything=("rate",))
    row("camera.to_photoelectrons", partial(to_photoelectrons, camera=CAMERA), {"adu": adu}, anything=("adu",))
    row("camera.saturated", partial(saturated, camera=CAMERA), {"adu": adu}, anything=("adu",))
    row("kde.to_super_resolved", kde.to_super_resolved, {"position": two.u}, anything=("position",), array=True)
    row("kde.to_camera", kde.to_camera, {"index": two.u}, anything=("index",), array=True)
    row(
        "kde.kde_image",
        partial(kde.kde_image, two, (9, 9)),
        {"weights": two.photons},
        truth=("weights",),
        optional=("weights",),
    )
    row("first_guess.peak_emitters", first_guess.peak_emitters, {"y": kde.kde_image(two, (9, 9))})
    row("kde.to_coordinates", kde.to_coordinates, {"y": kde.kde_image(two, (9, 9))})
    row("kde.redrawn", kde.redrawn, {"y": kde.kde_image(two, (9, 9))})
    row(
        "kde.render",
        partial(kde.render, shape=(9, 9)),
        {"u": two.u[0], "v": two.v[0], "sd": some(3)},
        optional=("sd",),
    )
    row(
        "simulate.frames",
        lambda background: simulate.frames(two, ROUND, CAMERA, (9, 9), background, dice()),
        {"background": some(2, 9, 9)},
    )
    row(
        "simulate.emitter_pair",
        lambda separation, angle: simulate.emitter_pair(separation, (4.0, 4.0), 100.0, angle),
        {"separation": some(2), "angle": some(2)},
    )
    row(
        "simulate.flat_fields",
        lambda levels: simulate.flat_fields(levels, 2, CAMERA, (4, 4), dice()),
        {"levels": some(3)},
    )
    row(
        "blinking.blink",
        lambda u, v: blinking.blink(u, v, blinking.Kinetics(), 100, dice()),
        {"u": two.u[0], "v": two.v[0]},
    )
    for layout in structures.NAMES:
        row(
            "structures.draw",
            lambda per_pixel, layout=layout: structures.draw(layout, per_pixel, (9, 9), dice()),
            {"per_pixel": some(2, high=0.6)},
        )
    row(
        "scenes.draw_positions",
        lambda per_pixel: scenes.draw_positions(scenes.Scene(), per_pixel, (9, 9), dice()),
        {"per_pixel": some(2, high=0.6)},
    )

    # -- estimation --------------------------------------------------------------------------------------------
    for function in (
        likelihood.exact_log_likelihood,
        likelihood.exact_score,
        likelihood.surrogate_log_likelihood,
        likelihood.surrogate_score,
        likelihood.deviance,
    ):
        name = f"likelihood.{function.__name__}"
        row(name, partial(function, camera=CAMERA), {"x": x, "rate": rate}, anything=("x", "rate"))
    row("likelihood.surrogate_counts", partial(likelihood.surrogate_counts, camera=CAMERA), {"x": x}, anything=("x",))
    for function in (fisher.surrogate_pixel_information, fisher.exact_pixel_information):
        row(f"fisher.{function.__name__}", partial(function, camera=CAMERA), {"rate": rate}, anything=("rate",))
    gradient = rate_gradient(one_emitter, ROUND, (9, 9))
    row("fisher.fisher_information", fisher.fisher_information, {"gradient": gradient, "pixel_information": noise})
    row("fisher.bound", fisher.bound, {"information": fisher.fisher_information(gradient, noise)})
    row(
        "fisher.localization_bound",
        partial(fisher.localization_bound, two, ROUND, CAMERA, (9, 9)),
        {"background": noise},
    )
    for form in (
        closed_forms.thompson,
        closed_forms.mortensen_least_squares,
        closed_forms.mortensen_mle,
        closed_forms.rieger_stallinga,
    ):
        names = ("photons", "sigma", "background", "pixel")
        row(f"closed_forms.{form.__name__}", form, {name: some(3) for name in names}, anything=names)
    start = fit.first_guess(frames, 1.0, False)
    row("fit.first_guess", partial(fit.first_guess, sigma=1.0, fit_sigma=True), {"spots": frames})
    spot = {"spots": frames, "read_variance": noise, "start": start}
    for psf in (None, sampled):
        row("fit.fit_spots", partial(fit.fit_spots, psf=psf), spot, optional=("start",))
    row(
        "joint.fit_emitters",
        partial(joint.fit_emitters, start=one_emitter),
        {"frames": frames, "read_variance": noise},
    )
    stack = expected_photons(Emitters(some(5, 1) + 3, some(5, 1) + 3, 0 * some(5, 1) + 5000), ROUND, (9, 9), 5.0)
    row(
        "beads.psf_of_beads",
        lambda stack, read_variance: measured(beads.psf_of_beads(stack, 2, read_variance=read_variance)),
        {"stack": stack, "read_variance": noise},
    )
    row("spots.find_spots", spots.find_spots, {"frames": frames})
    row("spots.cut_spots", partial(spots.cut_spots, size=5), {"frames": frames, "found": tensor([[0, 4, 4]])})

    # -- posterior ---------------------------------------------------------------------------------------------
    row(
        "modes.mode_posterior",
        lambda frames, counts, read_variance: modes.mode_posterior(
            frames, counts, one_emitter, torch.Generator().manual_seed(0), read_variance, draws=20, rounds=1, beam=1
        ),
        {"frames": frames, "counts": tensor([0.5, 0.5]), "read_variance": noise},
    )
    row("one.grid_posterior", one.grid_posterior, {"frame": frames[0], "read_variance": noise})
    row("one.Posterior.cdf", partial(grid.cdf, "photons"), {"value": some(2, low=300, high=700)}, anything=("value",))
    row("one.Posterior.log_density", grid.log_density, {"theta": theta})
    row(
        "many.chain_posterior",
        lambda frames, counts, read_variance: many.chain_posterior(frames, counts, dice(), read_variance, **CHAINS),
        {"frames": frames, "counts": tensor([0.5, 0.5], torch.float64), "read_variance": noise},
    )
    row(
        "many.Draws.credible_level",
        partial(draws.credible_level, one_emitter),
        {"background": tensor([5.0]), "sigma": tensor([1.0])},
    )
    row("convergence.split_r_hat", convergence.split_r_hat, {"draws": some(2, 3, 20)}, anything=("draws",))
    row("convergence.effective_size", convergence.effective_size, {"draws": some(2, 3, 20)}, anything=("draws",))

    # -- evaluation --------------------------------------------------------------------------------------------
    samples, truth, mean = some(2, 5, 4), some(2, 4), some(2, 4, low=0, high=0.1)
    scored = {"samples": samples, "truth": truth}
    row("calibration.pixel_class", calibration.pixel_class, {"mean": mean}, anything=("mean",))
    row("calibration.strata", calibration.strata, scored | {"mean": mean})
    row(
        "calibration.ranks",
        lambda samples, truth: calibration.ranks(samples, truth, torch.Generator().manual_seed(0)),
        scored,
    )
    row(
        "calibration.tarp",
        lambda samples, truth, references: calibration.tarp(
            samples, truth, references, torch.Generator().manual_seed(0)
        ),
        scored | {"references": mean},
    )
    row("calibration.covered", partial(calibration.covered, level=0.5), scored)
    row("calibration.coverage", calibration.coverage, scored)
    row("calibration.spread_skill", calibration.spread_skill, scored)
    row(
        "calibration.predicted_sd",
        calibration.predicted_sd,
        {"exact_sd": truth, "estimate_error": mean, "where": truth > 1},
        truth=("where",),
        optional=("where",),
    )
    row("calibration.sparsification", calibration.sparsification, {"sd": truth, "error": mean})
    row("calibration.summary", calibration.summary, scored | {"mean": mean})
    row("proper_scores.crps", proper_scores.crps, scored)
    row("proper_scores.energy_score", proper_scores.energy_score, scored)
    row(
        "proper_scores.crps_normal",
        proper_scores.crps_normal,
        {"mean": mean, "sd": truth, "truth": truth},
        anything=("truth",),
    )
    row("proper_scores.crps_point", proper_scores.crps_point, {"estimate": mean, "truth": truth}, anything=("truth",))
    kdes, numbers = some(2, 5, 8, 8), tensor([[0, 1, 1], [2, 1, 0]])
    two_kinds = {"samples": samples, "exact": some(2, 5, 4, low=0)}
    row(
        "resolution.fourier_ring_correlation",
        resolution.fourier_ring_correlation,
        {"first": some(8, 8), "second": noise[:8, :8]},
    )
    row("resolution.tapered", resolution.tapered, {"image": some(8, 8)})
    ring = {"correlation": some(5, low=0.1, high=0.9), "pixels": tensor([4.0, 12.0, 20.0, 24.0, 30.0])}
    row("resolution.correlation_band", resolution.correlation_band, ring)
    row("resolution.bit_curve", resolution.bit_curve, {"pixels": ring["pixels"]})
    row(
        "resolution.crossing",
        resolution.crossing,
        {"frequency": some(5, low=0.1), "correlation": ring["correlation"], "threshold": some(5, low=0)},
    )
    row("against_exact.energy_regret", against_exact.energy_regret, two_kinds)
    row(
        "against_exact.crps_regret",
        against_exact.crps_regret,
        two_kinds | {"where": truth > 1},
        truth=("where",),
        optional=("where",),
    )
    row(
        "against_exact.log_error_bar",
        against_exact.log_error_bar,
        {"samples": samples, "exact_sd": truth, "where": truth > 0},
        truth=("where",),
    )
    row("against_exact.peak_counts", partial(against_exact.peak_counts, factor=4, sigma=1.0), {"samples": kdes})
    row("against_exact.summary_vector", partial(against_exact.summary_vector, factor=4, sigma=1.0), {"samples": kdes})
    row(
        "against_exact.count_log_loss",
        partial(against_exact.count_log_loss, most=3),
        {"counts": numbers, "exact": numbers},
    )
    shares = tensor([0.2, 0.5, 0.9])
    row(
        "against_exact.share_error",
        partial(against_exact.share_error, draws=64, exact_draws=64),
        {"shares": shares, "exact": shares.flip(0)},
    )
    row(
        "against_exact.two_sample_accuracy",
        partial(against_exact.two_sample_accuracy, classifier=LogisticRegression()),
        {"samples": some(4, 5, 2), "exact": some(4, 6, 2, low=0)},
    )
    found = {"frame": tensor([0, 0, 1]), "u": some(3), "v": some(3)}
    points = localization.Points(**found)
    row(
        "localization.match",
        lambda frame, u, v: localization.match(localization.Points(frame, u, v), points, 100.0),
        found,
    )
    seen = some(2, 20, low=0, high=60)
    row(
        "resolution.nena",
        lambda frame, u, v: resolution.nena(localization.Points(frame, u, v)),
        {
            "frame": tensor([0] * 20 + [1] * 20),
            "u": torch.cat([seen[0], seen[0] + 0.1 * some(20)]),
            "v": torch.cat([seen[1], seen[1]]),
        },
    )
    row(
        "localization.score",
        lambda frame, u, v: localization.score(points, localization.Points(frame, u, v), 100.0, (9, 9)),
        found,
    )
    row(
        "localization.inside",
        lambda frame, u, v: localization.match(
            localization.inside(localization.Points(frame, u, v), (9, 9), 100.0, 50.0), points, 100.0
        ),
        found,
    )

    # -- networks ----------------------------------------------------------------------------------------------
    row("deepstorm.estimate_kde", partial(estimate_kde, network, camera=CAMERA), {"adu": adu})
    row("deepstorm.network_input", network_input, {"electrons": frames[:, None], "read_variance": noise})
    return rows


def calls(device: str = "cpu") -> dict[str, Callable[[], Any]]:
    """What the other public functions and methods that take tensors or a generator compute on a device."""
    dice = partial(step_generator, 1, 2, device=device)

    def some(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=dice(rank=len(shape)), device=device)

    emitters = Emitters(8 * some(2, 3), 8 * some(2, 3), 900 * some(2, 3))
    frames = spot_frames(device)
    sensor = Camera(some(20, 20, low=1, high=3), 100.0, some(20, 20)).to(device)
    grid = one.grid_posterior(frames[0])
    drawn = many.chain_posterior(frames, [0.5, 0.5], dice(), **CHAINS)
    jointly = partial(joint.fit_emitters, frames, Emitters.single(4, 4, 400.0).to(device), 1.0)
    flashes = blinking.blink(9 * some(5), 9 * some(5), blinking.Kinetics(off_time=5.0), 20, dice())
    scene = scenes.Scene(density=2.0, camera=sensor)
    batch = scenes.draw_batch(scene, 2, (16, 16), dice())
    # diffusion
    schedule = NoiseSchedule.cosine(6)
    y0, noise = some(3, 2, 5), some(3, 2, 5) - 0.5
    gamma, before = some(3, low=0.3, high=0.5), some(3, low=0.6, high=0.8)
    mixture = GaussianMixture(some(4, 2, 5), some(4), some(2, 5))
    steps = {"ancestral": ancestral, "ddim": partial(ddim, eta=0.5), "dpm_solver": dpm_solver}
    # networks
    phi, diffusion = small_deepstorm().to(device), small_diffusion().to(device)
    y_hat = phi(batch.electrons, batch.read_variance).detach()
    given = frame_input(batch.electrons, batch.read_variance)
    known = diffusion.condition(y_hat, given)
    rows = DiffusionBatch(batch.target(), y_hat, given, gamma[:2], some(*y_hat.shape))

    def gradients(network: torch.nn.Module, loss: Tensor) -> list[Tensor | None]:
        network.zero_grad()
        loss.backward()
        return [p.grad for p in network.parameters()]

    def rival(kind: Callable[..., torch.nn.Module], seed: int = 5) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return kind(channels=(8, 8)).to(device)

    def taught(kind: Callable[..., torch.nn.Module], data: Any) -> list:
        network = rival(kind)
        found = gradients(network, network(data))
        if isinstance(network, rivals.SNGP):
            network.accumulate(data)
        return [found, network.eval().sample(y_hat, given, 2, dice())]

    def attention(h: Tensor) -> list:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            layer = SelfAttention(8).to(device)
        output = layer(h)
        return [output, gradients(layer, output.square().sum())]

    def ensemble() -> list:
        together = rivals.Ensemble([rival(rivals.Gaussian), rival(rivals.Gaussian, 6)])
        return [together(rows), together.moments(y_hat, given), together.sample(y_hat, given, 2, dice())]

    def one_call() -> list:
        network = rival(engression.Engression)
        learns = [x is not None for x in gradients(network, network(rows))]  # which noise it draws is not the same
        return [torch.tensor(learns, device=device), network.eval().sample(y_hat, given, 2, dice())]

    def conformal_intervals() -> list:
        mended = conformal.Conformal(rival(rivals.Gaussian)).to(device)
        mended.calibrate([rows])
        return [mended(rows), mended.sample(y_hat, given, 2, dice())]

    return {
        "rivals.Gaussian": lambda: taught(rivals.Gaussian, rows),
        "rivals.Quantiles": lambda: taught(rivals.Quantiles, rows),
        "rivals.SNGP": lambda: taught(rivals.SNGP, rows),
        "rivals.Dropout": lambda: rival(rivals.Dropout).eval().sample(y_hat, given, 2, dice()),
        "engression.Engression": one_call,
        "engression.windowed_energy": lambda: engression.windowed_energy(y_hat, y_hat.flip(0), batch.target()),
        "rivals.Ensemble": ensemble,
        "conformal.Conformal": conformal_intervals,
        "emitter_set.EmitterSet": lambda: taught(
            emitter_set.EmitterSet, emitter_set.draw_emitters(scene, (16, 16), phi)(2, dice())
        ),
        "inputs.input_electrons": lambda: inputs.input_electrons(given),
        "psf.Emitters.to": lambda: emitters.to(dtype=torch.float64),
        "camera.Camera.to": lambda: sensor.to(dtype=torch.float64),
        "camera.Camera.crop": lambda: sensor.crop(2, 3, (5, 6)),
        "distributions.draw": lambda: scenes.draw(scenes.DENSITY, (4,), dice()),
        "distributions.Uniform.draw": lambda: scenes.SIGMA.draw((4,), dice()),
        "distributions.LogUniform.draw": lambda: scenes.DENSITY.draw((4,), dice()),
        "simulate.disc_positions": lambda: simulate.disc_positions((4,), 2.0, (4.0, 4.0), dice()),
        "simulate.uniform_on_disc": lambda: simulate.uniform_on_disc(2, (1, 4), 2.0, (4.0, 4.0), (1.0, 9.0), dice()),
        "simulate.uniform_in_frame": lambda: simulate.uniform_in_frame(2, (9, 9), 500.0, dice(), density=0.05),
        "blinking.Flashes.emitters": lambda: flashes.emitters(2, 9),
        "blinking.movie": lambda: list(blinking.movie(flashes, ROUND, CAMERA, (9, 9), 2.0, 20, dice(), block=8)),
        "scenes.draw_batch": lambda: [
            scenes.draw_batch(replace(scene, layout=layout, gradient=0.5), 2, (9, 9), dice())
            for layout in scenes.LAYOUTS
        ],
        "scenes.expose_batch": lambda: scenes.expose_batch(scene, emitters, (9, 9), dice()),
        "scenes.FrameBatch.target": lambda: batch.target(),
        "one.Posterior.sample": lambda: grid.sample(5, torch.Generator().manual_seed(1)),
        "joint.JointFit.covariance": lambda: jointly().covariance(),
        "joint.JointFit.draw": lambda: jointly().draw(4, dice()),
        "modes.ModeDraws.emitters": lambda: modes.mode_posterior(
            frames,
            torch.full((2,), 0.5),
            Emitters.single(4, 4, 400.0),
            torch.Generator().manual_seed(0),
            1.0,
            draws=20,
            rounds=1,
        ).emitters(0),
        "many.Draws": lambda: drawn,
        "many.Draws.count_probability": drawn.count_probability,
        "many.Draws.emitters": lambda: drawn.emitters(0),
        "many.Draws.kde_moments": drawn.kde_moments,
        "many.Draws.mass": drawn.mass,
        "many.Draws.diagnostics": drawn.diagnostics,
        "localization.Points.of": lambda: localization.Points.of(emitters),
        # -- diffusion ------------------------------------------------------------------------------------------
        "process.q_step": lambda: process.q_step(y0, 1 - gamma, noise),
        "process.q_sample": lambda: process.q_sample(y0, gamma, noise),
        "process.q_posterior": lambda: process.q_posterior(y0, noise, gamma, before),
        "process.target": lambda: [process.target(kind, y0, noise, gamma) for kind in process.KINDS],
        "process.to_x0": lambda: [process.to_x0(kind, y0, noise, gamma) for kind in process.KINDS],
        "process.to_noise": lambda: [process.to_noise(kind, y0, noise, gamma) for kind in process.KINDS],
        "process.loss_weight": lambda: [
            process.loss_weight(kind, noise, weight) for kind in process.KINDS for weight in process.WEIGHTS
        ],
        "process.denoising_error": lambda: process.denoising_error("v", y0 + 1, y0, noise, gamma),
        "process.denoising_loss": lambda: process.denoising_loss("v", y0 + 1, y0, noise, gamma, "min-snr"),
        "process.reverse_step": lambda: [
            process.reverse_step(noise, y0, gamma, before, None, variance, v)
            for variance, v in (("beta", None), ("posterior", None), ("optimal", 0.5), ("optimal", some(5)))
        ],
        "process.posterior_variance": lambda: process.posterior_variance(some(5), noise, gamma),
        "process.per_row": lambda: process.per_row(gamma, y0),
        "schedule.NoiseSchedule": lambda: NoiseSchedule(torch.linspace(1, 0.1, 5, device=device)),
        "schedule.NoiseSchedule.from_betas": lambda: NoiseSchedule.from_betas(gamma),
        "schedule.NoiseSchedule.draw_gamma": lambda: schedule.draw_gamma(7, dice()),
        "schedule.log_snr": lambda: log_snr(gamma),
        "schedule.from_log_snr": lambda: from_log_snr(gamma),
        "elbo.prior_term": lambda: elbo.prior_term(y0, gamma),
        "elbo.transition_term": lambda: elbo.transition_term(y0, noise, y0 + 0.1, some(3, 2, 5), gamma, before),
        "elbo.reconstruction_term": lambda: elbo.reconstruction_term(y0, y0 + 0.1, some(3, 2, 5)),
        "elbo.variational_bound": lambda: elbo.variational_bound(mixture.denoise, schedule, y0, dice()),
        "gaussian_mixture.GaussianMixture.draw": lambda: mixture.draw(3, dice()),
        "gaussian_mixture.GaussianMixture.log_density": lambda: mixture.log_density(noise, gamma),
        "gaussian_mixture.GaussianMixture.mode_probability": lambda: mixture.mode_probability(noise, gamma),
        "gaussian_mixture.GaussianMixture.denoise": lambda: mixture.denoise(noise, gamma),
        "gaussian_mixture.GaussianMixture.posterior_variance": lambda: mixture.posterior_variance(noise, gamma),
        **{
            f"samplers.{name}": lambda sampler=sampler: list(sampler(mixture.denoise, schedule, noise, None, dice()))
            for name, sampler in steps.items()
        },
        "samplers.sample": lambda: [
            sample(sampler, mixture.denoise, schedule, (3, 2, 5), (y0, noise), 7, dice(), chunk=4)
            for sampler in steps.values()
        ],
        # -- networks -------------------------------------------------------------------------------------------
        "deepstorm.DeepSTORM.forward": lambda: gradients(phi, phi(batch.electrons, batch.read_variance).sum()),
        "cddpm.frame_input": lambda: frame_input(batch.electrons, batch.read_variance),
        "cddpm.pixel_weight": lambda: pixel_weight(y_hat, known.scale),
        "cddpm.ConditionalDiffusion.condition": lambda: diffusion.condition(y_hat, given),
        "cddpm.ConditionalDiffusion.denoise": lambda: diffusion.denoise(rows.noise, rows.gamma, known.inputs),
        "cddpm.ConditionalDiffusion.forward": lambda: gradients(diffusion, diffusion(rows)),
        "cddpm.ConditionalDiffusion.loss_terms": lambda: diffusion.loss_terms(rows),
        "cddpm.sample_kde": lambda: [
            sample_kde(diffusion, y_hat, 3, dice(), given, NoiseSchedule.cosine(4).trained(), sampler)
            for sampler in steps.values()
        ],
        "unet.embed_log_snr": lambda: embed_log_snr(gamma),
        "unet.SelfAttention.forward": lambda: attention(some(2, 8, 4, 6)),
        "condition.condition_on": lambda: condition_on(y_hat, given),
        "condition.FrameFit": lambda: [
            FrameFit(batch.target(), given).moved(2, dice()),
            FrameFit(batch.target(), given).evidence(),
        ],
        "condition.fitted_kde": lambda: fitted_kde(batch.target(), given),
        "recipes.squared_error": lambda: recipes.squared_error(
            phi, recipes.DeepSTORMBatch(batch.electrons, batch.read_variance, batch.target())
        ),
        "recipes.diffusion_loss": lambda: recipes.diffusion_loss(diffusion, rows),
        "recipes.draw_frames": lambda: recipes.draw_frames(scene, (12, 12), 4, 1.0)(2, dice()),
        "recipes.draw_estimates": lambda: recipes.draw_estimates(scene, (12, 12), phi)(2, dice()),
    }


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, type by type; NaN equals NaN."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9))
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "to_dict"):
        return same(a.to_dict(), b.to_dict())
    return type(a) is type(b) and (a == b or a != a)
