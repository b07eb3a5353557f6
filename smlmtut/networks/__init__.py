"""The networks of the book, how they are trained (`training`, `recipes`) and their weights by name (`pretrained`).

Neither `training` nor accelerate is loaded by what only uses a network.
"""

from .cddpm import ConditionalDiffusion, frame_input, sample_kde, sampling_schedule
from .deepstorm import DeepSTORM, estimate_kde, network_input
from .pretrained import load, save
from .unet import UNet

__all__ = [
    "ConditionalDiffusion",
    "DeepSTORM",
    "UNet",
    "estimate_kde",
    "frame_input",
    "load",
    "network_input",
    "sample_kde",
    "sampling_schedule",
    "save",
]
