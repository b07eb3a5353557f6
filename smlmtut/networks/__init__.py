"""The networks of the book, their training (`training`, `recipes`) and their weights by name (`pretrained`).

Using a network loads neither `training` nor accelerate.
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
