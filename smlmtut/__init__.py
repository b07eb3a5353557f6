"""Uncertainty in single-molecule localization microscopy: the package of the book, in nine rooms.

For the book, in the order of its chapters:

    imaging     1, 5   from emitters to raw frames, and to kernel density estimates
    estimation  2–4    likelihood, Fisher information, maximum-likelihood fits
    networks    6, 9   DeepSTORM, the U-Net, conditional diffusion; their training and their weights
    posterior   7      the exact posterior of one emitter, and of an unknown number of them
    diffusion   8      noise schedules, the process out and back, samplers; no microscopy
    evaluation  6, 9   scores of localizations, and of uncertainty

For people with a microscope:

    io                 movies, tables, calibration maps
    localize           a movie in, a table out; the same with uncertainty
    cli                the command `smlmtut`

`notebook`, `figures` and `data` are what chapters use beside: profiles and claims, pictures, files fetched by hash.
Imports go one way: imaging ← estimation ← posterior, diffusion and imaging ← networks, all of them ← localize ← cli.
A room is loaded when it is first asked for.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.2.0"

ROOMS = ("imaging", "estimation", "posterior", "diffusion", "networks", "evaluation", "io", "localize", "cli")
MODULES = (*ROOMS, "notebook", "figures", "data")


def __getattr__(name: str) -> ModuleType:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(MODULES)}")
    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return [*MODULES, "__version__"]
