"""Split-conformal calibration: held-out frames say by how much the error bars of a rival have to grow or shrink.

Papadopoulos 2002 (ECML), Lei 2018 (J. Am. Stat. Assoc. 113:1094), with the scores |y − mean| / sd.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._validate import between, integers, non_negative, tensor, whole
from .cddpm import DiffusionBatch
from .rivals import Gaussian, inverse_cdf


def conformal_factors(score: Tensor, classes: Tensor, levels: Sequence[float]) -> Tensor:
    """By how much to multiply the sd so that mean ± factor · sd covers a share `level` (Lei 2018): (C, L) float64.

    score: (n,) |y − mean| / sd of pixels of held-out frames; classes: (n,) their class, 0 … C − 1, chosen by what is
    given. levels: (L,), each in [0, 1]. The factor is the ⌈(n + 1) level⌉-th smallest score of the class, infinite
    where there are fewer. Of a new pixel that is exchangeable with those of its class, the interval covers the truth
    with a probability of at least `level`, whatever the mean and the sd are. It says nothing of the pixels of one
    given frame.
    Raises ValueError for a negative score, a level or a class out of its range, or no scores.
    """
    score, classes = tensor("score", non_negative("score", score), 1).double(), integers("classes", classes, 1)
    non_negative("classes", classes)
    whole("the number of scores", len(score))
    level = between("levels", torch.as_tensor(levels, dtype=torch.float64), 0, 1)
    if len(classes) != len(score):
        raise ValueError(f"classes must have the length of score, {len(score)}, got {len(classes)}")
    rows = []
    for c in range(int(classes.max()) + 1):
        known = F.pad(score[classes == c].sort().values, (1, 1), value=math.inf)
        known[0] = 0  # for level 0
        # a product such as 10 · 0.3 may lie above its whole number by rounding
        rank = (known.numel() - 1) * level - 1e-9
        rows.append(known[rank.ceil().long().clamp(0, known.numel() - 1)])
    return torch.stack(rows)


class Conformal(nn.Module):
    """The intervals of a Gaussian head with factors from held-out frames.

    edges: values of ŷ between the classes of pixels, rising. A sample takes the intervals as nested, as those of a
    distribution are: it draws a level, then one of the two ends of the interval of that level.
    """

    levels: Tensor
    factors: Tensor

    def __init__(self, head: Gaussian, edges: Sequence[float] = (0.001, 0.05)) -> None:
        super().__init__()
        self.head, self.edges = head, torch.tensor(edges)
        self.register_buffer("levels", torch.linspace(0, 0.995, 200))
        self.register_buffer("factors", torch.full((len(edges) + 1, 200), math.inf))

    def forward(self, batch: DiffusionBatch) -> Tensor:
        """The loss of the head."""
        return self.head(batch)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[DiffusionBatch]) -> None:
        """Set the factors, (C, 200), from batches that the head was not trained on."""
        found = []
        for batch in batches:
            mean, sd = self.head.moments(batch.estimate, batch.frame)
            found.append((((batch.kde - mean).abs() / sd).flatten(), self.classes(batch.estimate).flatten()))
        score, classes = (torch.cat(parts) for parts in zip(*found, strict=True))
        factors = conformal_factors(score, classes, self.levels.tolist())
        self.factors.fill_(math.inf)  # of a class that did not occur nothing is known
        self.factors[: len(factors)] = factors

    def classes(self, estimate: Tensor) -> Tensor:
        """The class of each pixel, in the shape of ŷ."""
        return torch.bucketize(estimate, self.edges.to(estimate.device))

    @torch.no_grad()
    def sample(self, estimate: Tensor, frame: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """Independent pixels: (B, S, fH, fW). Raises as Gaussian's does, or ValueError before `calibrate`."""
        if not bool(self.factors.isfinite().all()):
            raise ValueError("factors must be finite: call calibrate first, with pixels of every class")
        mean, sd = self.head.moments(estimate, frame)
        shape = (2, len(estimate), whole("samples", samples), *estimate.shape[2:])
        at, side = torch.rand(shape, generator=generator, device=estimate.device)
        factors = self.factors[self.classes(estimate)[:, 0]].movedim(-1, 1)  # (B, L, fH, fW)
        return mean + sd * inverse_cdf(factors, self.levels, at) * (side - 0.5).sign()
