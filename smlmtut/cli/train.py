"""`smlmtut train`: one command a network. They differ in the recipe; how a run goes is the same."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, Gain, GainMap, Offset, OffsetMap, ReadVariance, ReadVarianceMap, camera_from, plain_errors

if TYPE_CHECKING:
    from ..imaging.scenes import Scene
    from ..networks.recipes import Recipe
    from ..networks.settings import TrainingSettings

training_app = typer.Typer(help="Train a network.", no_args_is_help=True)

AS_SHIPPED = "as for the shipped weights"
Folder = Annotated[Path, typer.Argument(help="Folder of the run: checkpoint.pt, loss.csv, weights.safetensors.")]
Steps = Annotated[int | None, typer.Option(help="Steps in total.", show_default=AS_SHIPPED)]
Batch = Annotated[int | None, typer.Option(help="Frames a step.", show_default=AS_SHIPPED)]
Rate = Annotated[float | None, typer.Option(help="Highest learning rate.", show_default=AS_SHIPPED)]
Seed = Annotated[int | None, typer.Option(help="Of the weights and of all frames.", show_default=AS_SHIPPED)]
Every = Annotated[int | None, typer.Option(help="Steps.", show_default="500")]
On = Annotated[Device, typer.Option(help="auto: the fastest there is.")]


@training_app.command("deepstorm")
def train_deepstorm(
    folder: Folder,
    steps: Steps = None,
    batch: Batch = None,
    learning_rate: Rate = None,
    seed: Seed = None,
    channels: Annotated[int | None, typer.Option(help="Features of the context module.", show_default="64")] = None,
    checkpoint_every: Every = None,
    gain: Gain = None,
    offset: Offset = None,
    read_variance: ReadVariance = None,
    gain_map: GainMap = None,
    offset_map: OffsetMap = None,
    read_variance_map: ReadVarianceMap = None,
    device: On = Device.auto,
) -> None:
    """Train DeepSTORM on the book's reference scene: 108 nm pixels, 100 to 2000 photons, background 0 to 20.

    A run that was broken off goes on when the same command is given again. Without a camera, the real maps that the
    book uses are read; they are downloaded once. The weights appear in FOLDER/weights.safetensors at the end.

    Example: smlmtut train deepstorm runs/mine --gain 2.0 --offset 100 --read-variance 22 --steps 5000
    """
    with plain_errors():
        from ..networks import recipes

        scene = _scene(gain, offset, read_variance, gain_map, offset_map, read_variance_map)
        settings = _settings(recipes.SHIPPED, steps, batch, learning_rate, seed, checkpoint_every)
        recipe = recipes.deepstorm_2d(scene, settings, **({} if channels is None else {"channels": channels}))
        _run(recipe, folder, device, "train deepstorm", {})


@training_app.command("diffusion")
def train_diffusion(
    folder: Folder,
    published: Annotated[
        bool, typer.Option("--published", help="The published form: noise of the image in [-1, 1], given ŷ alone.")
    ] = False,
    estimator: Annotated[
        str, typer.Option(help="DeepSTORM whose ŷ it is given: a name, or a .safetensors file.")
    ] = "deepstorm-2d",
    steps: Steps = None,
    batch: Batch = None,
    learning_rate: Rate = None,
    seed: Seed = None,
    checkpoint_every: Every = None,
    gain: Gain = None,
    offset: Offset = None,
    read_variance: ReadVariance = None,
    gain_map: GainMap = None,
    offset_map: OffsetMap = None,
    read_variance_map: ReadVarianceMap = None,
    device: On = Device.auto,
) -> None:
    """Train the conditional diffusion model on the same scene: samples of the KDE given DeepSTORM's estimate of it.

    One network learns both p(y given ŷ) and p(y given ŷ and the frame). Going on, camera and weights: as for deepstorm.

    Example: smlmtut train diffusion runs/mine --estimator runs/deepstorm/weights.safetensors --steps 5000
    """
    with plain_errors():
        from ..networks import pretrained, recipes

        scene = _scene(gain, offset, read_variance, gain_map, offset_map, read_variance_map)
        base = recipes.PUBLISHED_DIFFUSION if published else recipes.SHIPPED_DIFFUSION
        settings = _settings(base, steps, batch, learning_rate, seed, checkpoint_every)
        phi = pretrained.load(estimator)
        recipe = recipes.cddpm_2d(scene, phi, settings, **(recipes.PUBLISHED_FORM if published else {}))
        _run(recipe, folder, device, "train diffusion", {"estimator": pretrained.sha256(estimator)})


def _scene(
    gain: float | None,
    offset: float | None,
    read_variance: float | None,
    gain_map: Path | None,
    offset_map: Path | None,
    read_variance_map: Path | None,
) -> "Scene":
    """The reference scene, with the camera of the options where one of them is given."""
    from ..networks import recipes

    numbers, maps = (gain, offset, read_variance), (gain_map, offset_map, read_variance_map)
    given = any(x is not None for x in (*numbers, *maps))
    return recipes.reference_scene(camera_from(*numbers, *maps, None, None, None) if given else None)


def _settings(
    base: "TrainingSettings",
    steps: int | None,
    batch: int | None,
    learning_rate: float | None,
    seed: int | None,
    checkpoint_every: int | None,
) -> "TrainingSettings":
    """The shipped settings, with what the options change."""
    changes = {
        "steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    return replace(base, **{name: x for name, x in changes.items() if x is not None})  # type: ignore[arg-type]


def _run(recipe: "Recipe", folder: Path, device: Device, title: str, metadata: dict[str, Any]) -> None:
    """Train with a progress bar, then write the averaged weights."""
    from ..networks import checkpoint, pretrained, training

    settings = recipe.settings
    network = recipe.network(settings.seed)
    states = training.train(network, recipe.draw, recipe.loss, settings, folder, device.value)
    for _ in training.follow(states, settings, title):
        pass
    checkpoint.read_average(network.cpu(), folder)
    path = folder / "weights.safetensors"
    pretrained.save(network, path, metadata | {"settings": asdict(settings)})  # type: ignore[arg-type]
    typer.echo(f"wrote {path}")
