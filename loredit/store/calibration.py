"""The numbers that routing judges by, and how they are found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..engine.storage.manifest import MANIFEST, Manifest, damaged

_RIDGE = 0.0003  # of the regression, on a mean loss; ten times of it costs half a point
_MARGINS = (0.0, 0.25, 0.5, 1.0, 2.0)  # choices, in units of z


class Calibration(BaseModel):
    """The numbers that a router judges by; a part of a store's manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    named: tuple[float, float, float, float, float]
    """b and the weights of s, of the relation's cosine, the whole prompt's and the wording."""
    unnamed: tuple[float, float]
    """b' and the weight of the whole prompt's cosine, for a fact without a subject."""
    wording: tuple[float, ...] = ()
    """d, from how probes are worded to how rephrasings are; empty where only the samples are known."""
    threshold: float = Field(ge=0, le=1)
    margin: float = Field(ge=0)


class Routing(BaseModel):
    """What the manifest says of a store's routing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str
    calibration: Calibration
    fitted_to: int = Field(ge=0)
    """Facts of the store's own that it was calibrated on; 0 for the samples."""


def routing_of(folder: Path, manifest: Manifest) -> Routing | None:
    """What a manifest says of routing; None where an earlier release wrote it, whose index is of no use now."""
    values = manifest.routing or {}
    calibration = values.get("calibration")
    if "layer" in values or (isinstance(calibration, dict) and "wording" not in calibration):
        return None
    try:
        return Routing.model_validate(values)
    except ValidationError as error:
        faults = [f"routing.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise damaged(folder / MANIFEST, faults) from None


def probability(z: float) -> float:
    """1 / (1 + exp(-z)), for any z."""
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def regression(rows: Sequence[Sequence[float]], labels: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Bias and weights of a logistic regression with a ridge, by Newton's method.

    Args:
        rows: (N, k) features.
        labels: (N,) 0 or 1.
        weights: (N,) what each row counts; they sum to 1.

    Example:
        >>> bias, slope = regression([[0.0], [1.0]], [0, 1], [0.5, 0.5])
        >>> bias < 0 < slope
        True
    """
    x, y, w = (torch.tensor(values, dtype=torch.float64) for values in (rows, labels, weights))
    x = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1)
    ridge = torch.full((x.shape[1],), _RIDGE, dtype=x.dtype)
    ridge[0] = 1e-6
    beta = x.new_zeros(x.shape[1])
    for _ in range(50):
        p = torch.sigmoid(x @ beta)
        slope = x.T @ (w * (p - y)) + ridge * beta
        bend = (x * (w * p * (1 - p))[:, None]).T @ x + ridge.diag()
        step = torch.linalg.solve(bend, slope)
        beta = beta - step
        if float(step.abs().max()) < 1e-8:
            break
    return [round(v, 6) for v in beta.tolist()]


def cut(
    again: Sequence[tuple[float, float, bool]], alone: Sequence[tuple[float, float]], strays: float, wrong: float
) -> tuple[float, float]:
    """Threshold and margin: the most rephrasings that go right, less the probes that are routed, in shares of each.

    What exceeds its share costs tenfold, so that there is an answer for any prompts.
    """
    best = (-math.inf, 1.0, 0.0)
    z, ahead, right = (torch.tensor(list(v)) for v in zip(*again, strict=True))
    z0, ahead0 = (torch.tensor(list(v)) for v in zip(*alone, strict=True)) if alone else (z[:0], z[:0])
    for margin in _MARGINS:
        cuts = torch.cat([z, z0]).unique()
        cuts = torch.cat([(cuts[1:] + cuts[:-1]) / 2, cuts[-1:] + 1e-3])
        goes = (z >= cuts[:, None]) & (ahead >= margin)
        went, missed = (goes & right).float().mean(1), (goes & ~right).float().mean(1)
        strayed = ((z0 >= cuts[:, None]) & (ahead0 >= margin)).float().mean(1) if len(z0) else missed * 0
        gain = went - strayed - 10 * (strayed - strays).clamp(min=0) - 10 * (missed - wrong).clamp(min=0)
        top = int(gain.argmax())
        if float(gain[top]) > best[0]:
            best = float(gain[top]), probability(float(cuts[top])), margin
    return best[1], best[2]
