"""`smlmtut train`: one command for each network. They differ in the recipe only."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, On, SensorOptions, checked_seed, grouped, plain_errors

if TYPE_CHECKING:
    from ..imaging.scenes import Scene
    from ..networks.recipes import Recipe
    from ..networks.settings import TrainingSettings

training_app = typer.Typer(help="Train a network.", no_args_is_help=True)

AS_SHIPPED = "as for the shipped weights"
Folder = Annotated[Path, typer.Argument(help="Folder of the run: checkpoint.pt, loss.csv, weights.safetensors.")]


@dataclass(frozen=True)
class TrainingOptions:
    """Options that change the settings of a training; None: as for the shipped weights."""

    steps: Annotated[int | None, typer.Option(help="Total number of steps.", show_default=AS_SHIPPED)] = None
    batch: Annotated[int | None, typer.Option(help="Frames per step.", show_default=AS_SHIPPED)] = None
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate.", show_default=AS_SHIPPED)] = None
    seed: Annotated[int | None, typer.Option(help="Of the weights and of all frames.", show_default=AS_SHIPPED)] = None
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps.", show_default="500")] = None

    def settings(self, base: "TrainingSettings") -> "TrainingSettings":
        """The settings of the shipped weights, with the changes that were given."""
        checked_seed(self.seed)
        return replace(base, **{name: value for name, value in asdict(self).items() if value is not None})


@training_app.command("deepstorm")
@grouped
def train_deepstorm(
    folder: Folder,
    training: TrainingOptions,
    sensor: SensorOptions,
    scene: Annotated[
        Path | None,
        typer.Option(help="YAML file of `smlmtut measure`: the scene to train on.", show_default="the reference scene"),
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Features of the context module.", show_default="64")] = None,
    device: On = Device.auto,
) -> None:
    """Train DeepSTORM on the book's reference scene: 108 nm pixels, 100 to 2000 photons, background 0 to 20.

    With --scene the frames are drawn from that file's pixel size, PSF, photons, background and density instead, as a
    round PSF; the file's numbers are kept in the metadata of the weights.

    Give the same command again to continue an interrupted run. Without a camera, the real maps of the book are used,
    which are downloaded once; of a file, --camera, the keys crop and pixel_size_nm are not used. The weights appear in
    FOLDER/weights.safetensors at the end.

    Example: smlmtut train deepstorm runs/mine --gain 2.0 --offset 100 --read-variance 22 --steps 5000
    """
    with plain_errors():
        from ..networks import recipes

        architecture = {} if channels is None else {"channels": channels}
        settings = training.settings(recipes.SHIPPED)
        reference, metadata = _scene(sensor), {}
        if scene is not None:
            from ..io.scene_file import read_scene

            described = read_scene(scene)
            reference, metadata = described.scene(reference.camera), {"scene": described.numbers()}
        recipe = recipes.deepstorm_2d(reference, settings, **architecture)
        _run(recipe, folder, device, "train deepstorm", metadata)


@training_app.command("diffusion")
@grouped
def train_diffusion(
    folder: Folder,
    training: TrainingOptions,
    sensor: SensorOptions,
    published: Annotated[
        bool, typer.Option("--published", help="The published form: noise of the image in [-1, 1], given ŷ alone.")
    ] = False,
    estimator: Annotated[
        str, typer.Option(help="DeepSTORM, whose ŷ is the condition: a name, or a .safetensors file.")
    ] = "deepstorm-2d",
    device: On = Device.auto,
) -> None:
    """Train the conditional diffusion model on the same scene: samples of the KDE given DeepSTORM's estimate of it.

    The network learns p(y given the frame and ŷ) about a fit of the frame; with --published, p(y given ŷ).
    Interruptions, camera and weights: as for deepstorm.

    Example: smlmtut train diffusion runs/mine --estimator runs/deepstorm/weights.safetensors --steps 5000
    """
    with plain_errors():
        from ..networks import pretrained, recipes

        settings = training.settings(recipes.PUBLISHED_DIFFUSION if published else recipes.SHIPPED_DIFFUSION)
        scene = _scene(sensor)
        phi = pretrained.load(estimator)
        recipe = recipes.cddpm_2d(scene, phi, settings, **(recipes.PUBLISHED_FORM if published else {}))
        _run(recipe, folder, device, "train diffusion", {"estimator": pretrained.sha256(estimator)})


def _scene(sensor: SensorOptions) -> "Scene":
    """The reference scene, with the camera of the options where any is given."""
    from ..networks import recipes

    return recipes.reference_scene(sensor.description().camera() if sensor.given() else None)


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
