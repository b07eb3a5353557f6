"""Every chapter and four benchmarks on this machine's GPU, and what they gave in gpu-report.md.

    python -m tools.gpu_report --profile smoke     # then book, then full

Ends at once where PyTorch sees no GPU. The report has the device, each chapter's time, peak memory and claims, and the
speed of fits, localizing, posterior samples and training beside that of this machine's CPU, in the same run. Exits with
1 if a chapter failed; the report is written all the same.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from smlmtut._random import step_generator
from smlmtut.estimation import fit_spots
from smlmtut.imaging.scenes import draw_batch
from smlmtut.localize import kde_sampler, localize_movie
from smlmtut.networks import pretrained, recipes, training
from smlmtut.networks.cddpm import ConditionalDiffusion
from smlmtut.networks.precision import best_precision
from tools import run_chapters
from tools.machine import cpu_name, driver
from tools.run_chapters import Report

LIMIT = 14.0  # GB that a T4 has for a chapter


@dataclass(frozen=True)
class Size:
    """How much a benchmark computes: spots, frames of a movie and their side, samples of a frame, training steps."""

    spots: int = 100_000
    frames: int = 128
    side: int = 64
    samples: int = 64
    steps: int = 60


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the second of two runs: the first compiles and warms up."""
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    return seconds


def fits(device: torch.device, size: Size) -> float:
    """Spots fitted a second: 11 × 11 pixels, 500 photons or so, of the reference scene."""
    batch = draw_batch(recipes.reference_scene(), 64, (11, 11), step_generator(1, 0))
    many = [x[:, 0].repeat(-(-size.spots // 64), 1, 1)[: size.spots] for x in (batch.electrons, batch.read_variance)]
    spots, variance = (x.to(device) for x in many)
    return size.spots / timed(lambda: fit_spots(spots, sigma=1.0, read_variance=variance), device)


def localizing(device: torch.device, size: Size) -> float:
    """Frames localized a second, in the fastest precision of the device."""
    scene = recipes.reference_scene()
    batch = draw_batch(scene, size.frames, (size.side, size.side), step_generator(2, 0))
    camera = scene.camera.crop(128, 256, (size.side, size.side))
    movie = batch.electrons[:, 0] * torch.as_tensor(camera.gain) + torch.as_tensor(camera.offset)
    network = pretrained.load("deepstorm-2d", device)
    work = lambda: list(localize_movie(movie, camera, network, precision=best_precision(device)))  # noqa: E731
    return size.frames / timed(work, device)


def sampling(device: torch.device, size: Size) -> float:
    """Posterior samples of 64 × 64 super-resolved pixels a second, 20 calls of the network each."""
    network = pretrained.load("cddpm-2d", device, ConditionalDiffusion)
    sampler = kde_sampler(network, best_precision(device))
    batch = draw_batch(recipes.reference_scene(), 4, (16, 16), step_generator(3, 0))
    x, variance = batch.electrons.to(device), batch.read_variance.to(device)
    y = pretrained.load("deepstorm-2d", device)(x, variance)
    work = lambda: sampler(x, variance, y, size.samples, step_generator(4, 0, device=device))  # noqa: E731
    return 4 * size.samples / timed(work, device)


def learning(device: torch.device, size: Size) -> float:
    """Frames a second that the training of the diffusion model takes, drawing them included."""
    recipe = recipes.cddpm_2d(recipes.reference_scene(), pretrained.load("deepstorm-2d"))
    settings = recipes.TrainingSettings(steps=size.steps, batch=32, log_every=size.steps)
    speed = 0.0
    for state in training.train(recipe.network(0), recipe.draw, recipe.loss, settings, device=device):
        speed = state.samples_per_second
    return speed


BENCHMARKS = {"fits a second": fits, "frames localized a second": localizing, "posterior samples a second": sampling,
              "training frames a second": learning}  # fmt: skip


def speeds(device: torch.device, size: Size) -> dict[str, tuple[float, float]]:
    """Of each benchmark: on the device, and on the CPU of this machine with all its threads."""
    return {name: (run(device, size), run(torch.device("cpu"), size)) for name, run in BENCHMARKS.items()}


def text(reports: list[Report], speed: dict[str, tuple[float, float]], profile: str, name: str, version: str) -> str:
    """The report, in Markdown."""
    rows = []
    for report in reports:
        held = sum(claim["holds"] for claim in report.claims if claim["enforced"])
        checked = sum(claim["enforced"] for claim in report.claims)
        memory = report.memory.get("reserved")
        shown = "–" if memory is None else f"{memory / 1e9:.2f}" + (" **too much**" if memory / 1e9 > LIMIT else "")
        state = "FAILED" if report.error else "ran"
        rows.append(f"| {report.chapter} | {state} | {report.seconds:.0f} | {shown} | {held} of {checked} |")
    lines = [f"| {what} | {gpu:.4g} | {cpu:.4g} | {gpu / cpu:.3g} |" for what, (gpu, cpu) in speed.items()]
    errors = [f"### {report.chapter}\n\n```\n{report.error}\n```" for report in reports if report.error]
    return "\n".join([
        f"# {name}", "",
        f"Driver {version}, torch {torch.__version__}, profile {profile}; beside it {cpu_name()}.", "",
        f"| chapter | state | s | GPU memory (GB; a T4 has {LIMIT:g}) | claims that hold |", "|---|---|---|---|---|",
        *rows, "", "| what | GPU | CPU | ratio |", "|---|---|---|---|", *lines, "", *errors, "",
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run, write, print the path; 0 if no chapter failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="chapters, by the start of their file name; all if none")
    parser.add_argument("--profile", default="smoke", choices=["smoke", "book", "full"])
    parser.add_argument("--output", type=Path, default=Path("gpu-report.md"))
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("torch.cuda.is_available() is false: no chapter would use a GPU", file=sys.stderr)
        return 1
    device = torch.device("cuda", 0)
    failed = run_chapters.main([*given.names, "--profile", given.profile, "--device", "cuda", "--force"])
    timings = json.loads((run_chapters.BUILD / "timings.json").read_text(encoding="utf-8"))
    reports = [Report(**chapter) for chapter in timings["chapters"]]
    speed = speeds(device, Size())
    name = torch.cuda.get_device_name(device)
    given.output.write_text(text(reports, speed, given.profile, name, driver()), encoding="utf-8")
    print(given.output)
    return failed


if __name__ == "__main__":
    sys.exit(main())
