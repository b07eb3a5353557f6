"""From a training run to a file that the package can ship."""

from dataclasses import replace

import pytest
import torch

from smlmtut.imaging.camera import Camera
from smlmtut.networks import pretrained, recipes, training
from tools.export_weights import export

SETTINGS = replace(recipes.SHIPPED, steps=3, batch=1, warmup=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three steps: its folder and the averaged network it ended with."""
    folder = tmp_path_factory.mktemp("run")
    recipe = recipes.deepstorm_2d(recipes.reference_scene(Camera(read_variance=5.0)), SETTINGS)
    network = recipe.network(SETTINGS.seed)
    for state in training.train(network, recipe.draw, recipe.loss, SETTINGS, folder, "cpu"):
        average = state.average
    return folder, average


def test_exported_weights_are_the_average_of_the_run(finished, tmp_path):
    folder, average = finished
    digest = export(folder, tmp_path / "out.safetensors", "abc123", SETTINGS)
    assert digest == pretrained.sha256(tmp_path / "out.safetensors")
    network = pretrained.load(tmp_path / "out.safetensors")
    wanted = average.state_dict()
    assert all(torch.equal(x, wanted[name]) for name, x in network.state_dict().items())
    about = pretrained.describe(tmp_path / "out.safetensors")
    assert about["commit"] == "abc123" and about["frames"] == 3 and about["settings"]["seed"] == SETTINGS.seed


def test_an_unfinished_run_is_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="finished run of 9 steps, got 3"):
        export(finished[0], tmp_path / "out.safetensors", "abc123", replace(SETTINGS, steps=9))
    assert not (tmp_path / "out.safetensors").exists()


def test_a_run_of_other_settings_is_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="these differ: learning_rate"):
        export(finished[0], tmp_path / "out.safetensors", "abc123", replace(SETTINGS, learning_rate=1e-5))
