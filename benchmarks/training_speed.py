"""How fast the shipped recipe trains, and what share of a step is spent on simulating its frames.

    python benchmarks/training_speed.py [--recipe deepstorm|diffusion]

Also: bf16 autocast against float32 on this CPU, and two threads against one. Every figure is a median of steps, the
kinds of which take turns, so that other load falls on all of them alike. The last line is the share.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from smlmtut._random import step_generator
from smlmtut.networks import precision, pretrained, recipes, training


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Step:
    """One step of the recipe as `training.train` does it, in two parts: the batch, and the learning."""

    def __init__(self, recipe: recipes.Recipe, autocast: bool, threads: int) -> None:
        self.recipe, self.autocast, self.threads, self.done = recipe, autocast, threads, 0
        self.network = recipe.network(recipe.settings.seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = recipe.network(recipe.settings.seed).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4)
        self.simulating: list[float] = []
        self.learning: list[float] = []

    def __call__(self) -> None:
        torch.set_num_threads(self.threads)
        generator = step_generator(self.recipe.settings.seed, self.done)
        self.done += 1
        began = time.perf_counter()
        batch = self.recipe.draw(self.recipe.settings.batch, generator)
        self.simulating.append(time.perf_counter() - began)
        self.learning.append(seconds(lambda: self.learn(batch)))

    def learn(self, batch: tuple[Tensor, ...]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            value = self.recipe.loss(self.network, batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        training.update_average(self.average, self.network, 0.999)

    @property
    def median(self) -> float:
        return statistics.median(a + b for a, b in zip(self.simulating, self.learning, strict=True))


def main() -> None:
    """Take turns, print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each kind, after one to warm up")
    parser.add_argument("--bf16", action="store_true", help="time bf16 also where this CPU has no instructions for it")
    parser.add_argument("--recipe", choices=("deepstorm", "diffusion"), default="deepstorm")
    args = parser.parse_args()
    scene = recipes.reference_scene()
    recipe = recipes.deepstorm_2d(scene)
    if args.recipe == "diffusion":  # simulating is then: frames, φ's estimates, noise
        recipe = recipes.cddpm_2d(scene, pretrained.load())
    units = precision.best_precision(torch.device("cpu")) == "bf16"
    kinds = {"float32, 1 thread": Step(recipe, False, 1), "float32, 2 threads": Step(recipe, False, 2)}
    if units or args.bf16:
        kinds |= {"bf16, 1 thread": Step(recipe, True, 1), "bf16, 2 threads": Step(recipe, True, 2)}
    for turn in range(args.steps + 1):
        for step in kinds.values():
            step()
            if turn == 0:
                step.simulating.clear()
                step.learning.clear()
    batch = recipe.settings.batch
    print(f"capability {torch.backends.cpu.get_cpu_capability()}, bf16 instructions: {'yes' if units else 'no'}")
    for name, step in kinds.items():
        simulating, learning = (1e3 * statistics.median(part) for part in (step.simulating, step.learning))
        print(
            f"{name:18s} {batch / step.median:6.1f} frames/s; simulating {simulating:.0f}, learning {learning:.0f} ms"
        )
    one, two = kinds["float32, 1 thread"], kinds["float32, 2 threads"]
    print(f"two threads against one: {one.median / two.median:.2f}")
    if "bf16, 1 thread" in kinds:
        print(f"bf16 against float32: {one.median / kinds['bf16, 1 thread'].median:.2f}")
    else:
        print("bf16 against float32: not timed, this CPU would emulate it (--bf16 does it all the same)")
    share = statistics.median(a / (a + b) for a, b in zip(one.simulating, one.learning, strict=True))
    print(f"share of a step spent simulating: {share:.1%}")


if __name__ == "__main__":
    main()
