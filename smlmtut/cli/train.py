"""`smlmtut train`: one command for each network. They differ in the recipe only."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, On, SensorOptions, checked_seed, grouped, plain_errors

if TYPE_CHECKING:
    from .. import imaging
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
        changes: dict[str, Any] = {name: value for name, value in asdict(self).items() if value is not None}
        if self.steps is not None:  # a short run would end before its learning rate has risen
            changes["warmup"] = max(0, min(base.warmup, self.steps // 5))
        return replace(base, **changes)


Scene = Annotated[
    Path | None,
    typer.Option(help="YAML file of `smlmtut measure`: the scene to train on.", show_default="the reference scene"),
]
Start = Annotated[
    str | None,
    typer.Option(
        help="Weights to start from: the name of shipped ones, or a .safetensors file.", show_default="random numbers"
    ),
]
Estimator = Annotated[str, typer.Option(help="DeepSTORM, whose ŷ is the condition: a name, or a .safetensors file.")]


@training_app.command("deepstorm")
@grouped
def train_deepstorm(
    folder: Folder,
    training: TrainingOptions,
    sensor: SensorOptions,
    scene: Scene = None,
    start: Start = None,
    channels: Annotated[int | None, typer.Option(help="Features of the context module.", show_default="64")] = None,
    device: On = Device.auto,
) -> None:
    """Train DeepSTORM on the book's reference scene: 108 nm pixels, 100 to 2000 photons, background 0 to 20.

    With --scene the frames are drawn from that file's pixel size, PSF, photons, background and density instead, and
    with the PSF of `smlmtut psf` where the file has the key psf, whose path is relative to its folder. The weights keep
    the numbers of their scene, in photo-electrons, and `smlmtut localize` warns of movies outside of it. With --start
    the training goes on from trained weights of the same architecture: give it fewer --steps and a lower
    --learning-rate.

    Give the same command again to continue an interrupted run. Without a camera, the real maps of the book are used,
    which are downloaded once; of a file, --camera, the keys crop and pixel_size_nm are not used. The weights appear in
    FOLDER/weights.safetensors at the end.

    Example: smlmtut train deepstorm runs/mine --gain 2.0 --offset 100 --read-variance 22 --steps 5000

    Example: smlmtut train deepstorm runs/mine --camera camera.yaml --scene scene.yaml --start deepstorm-2d
    """
    with plain_errors():
        from ..networks import recipes

        architecture = {} if channels is None else {"channels": channels}
        settings, place = training.settings(recipes.SHIPPED), _scene(sensor, scene)
        recipe = recipes.deepstorm_2d(place, settings, **architecture)
        _run(recipe, folder, device, "train deepstorm", place, start)


@training_app.command("diffusion")
@grouped
def train_diffusion(
    folder: Folder,
    training: TrainingOptions,
    sensor: SensorOptions,
    scene: Scene = None,
    start: Start = None,
    published: Annotated[
        bool, typer.Option("--published", help="The published form: noise of the image in [-1, 1], given ŷ alone.")
    ] = False,
    estimator: Estimator = "deepstorm-2d",
    device: On = Device.auto,
) -> None:
    """Train the conditional diffusion model on the same scene: samples of the KDE given DeepSTORM's estimate of it.

    The network learns p(y given the frame and ŷ) about a fit of the frame, whose limits are those of the scene; with
    --published, p(y given ŷ). Scene, start, interruptions, camera and weights: as for deepstorm. The estimator should
    be trained on the same scene. The fit is of round Gaussians of the scene's sigma_px, also where the scene has a psf
    or an ellipticity; the network learns what such a fit is worth.

    Example: smlmtut train diffusion runs/mine --estimator runs/deepstorm/weights.safetensors --steps 5000
    """
    with plain_errors():
        from ..networks import pretrained, recipes

        settings = training.settings(recipes.PUBLISHED_DIFFUSION if published else recipes.SHIPPED_DIFFUSION)
        place, phi = _scene(sensor, scene), pretrained.load(estimator)
        recipe = recipes.cddpm_2d(place, phi, settings, **(recipes.PUBLISHED_FORM if published else {}))
        _run(recipe, folder, device, "train diffusion", place, start, estimator)


@training_app.command("engression")
@grouped
def train_engression(
    folder: Folder,
    training: TrainingOptions,
    sensor: SensorOptions,
    scene: Scene = None,
    start: Start = None,
    estimator: Estimator = "deepstorm-2d",
    device: On = Device.auto,
) -> None:
    """Train the network that draws a sample in one call, for `localize --uncertainty --posterior`.

    It learns p(y given the frame and ŷ) as the diffusion model does, by the energy score of two draws. All else as for
    diffusion.

    Example: smlmtut train engression runs/fast --scene scene.yaml --estimator runs/mine/weights.safetensors
    """
    with plain_errors():
        from ..networks import pretrained, recipes

        settings = training.settings(recipes.SHIPPED_ENGRESSION)
        place, phi = _scene(sensor, scene), pretrained.load(estimator)
        recipe = recipes.engression_2d(place, phi, settings)
        _run(recipe, folder, device, "train engression", place, start, estimator)


def _scene(sensor: SensorOptions, path: Path | None) -> "imaging.Scene":
    """The reference scene or that of a file, with the camera of the options where any is given."""
    from ..io.scene_file import read_scene
    from ..networks import recipes

    described = None if path is None else read_scene(path)  # an error before the maps are downloaded
    scene = recipes.reference_scene(sensor.description().camera() if sensor.given() else None)
    return scene if described is None else described.scene(scene.camera)


def _run(
    recipe: "Recipe",
    folder: Path,
    device: Device,
    title: str,
    scene: "imaging.Scene",
    start: str | None,
    estimator: str | None = None,
) -> None:
    """Train with a progress bar, then write the averaged weights, which tell what they were made from."""
    import torch

    from ..io.scene_file import SceneDescription
    from ..networks import checkpoint, pretrained, training

    settings = recipe.settings
    metadata: dict[str, Any] = {"scene": SceneDescription.of(scene).numbers()}
    metadata |= {
        name: pretrained.sha256(given) for name, given in (("estimator", estimator), ("start", start)) if given
    }
    network = recipe.network(settings.seed)
    if start is not None:
        pretrained.copy_weights(start, network)  # type: ignore[arg-type]
    torch.manual_seed(settings.seed)  # of losses that draw
    states = training.train(network, recipe.draw, recipe.loss, settings, folder, device.value, metadata)
    for _ in training.follow(states, settings, title):
        pass
    checkpoint.read_average(network.cpu(), folder)
    path = folder / "weights.safetensors"
    pretrained.save(network, path, metadata | {"settings": asdict(settings)})  # type: ignore[arg-type]
    typer.echo(f"wrote {path}")
