"""Which fastconv call is held against which peers, and the ratios that come of it.

Peers that prepack or convert beforehand meet prepared operations, peers that do not meet plain
calls. A ratio is the peer's time over fastconv's: above 1 fastconv is faster, below 1 it loses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log
from statistics import mean, median

from bench.results import CaseResult, PeerResult
from bench.shapes import DIRECTIONS, FORWARD, INPUT_GRAD, WEIGHT_GRAD


@dataclass(frozen=True)
class Comparison:
    """One fastconv peer against its rivals, in some directions: the ratio is that of the hardest.

    A rival in `own_layout` gets its operands in the layout that it likes best; it meets the faster of
    `ours` and `ours_too`, which does the same. Every other rival meets `ours`.
    """

    name: str
    ours: str
    rivals: tuple[str, ...]
    directions: tuple[str, ...] = DIRECTIONS
    ours_too: str = ""
    own_layout: tuple[str, ...] = ()

    def ours_against(self, rival: str) -> tuple[str, ...]:
        return (self.ours, self.ours_too) if rival in self.own_layout else (self.ours,)


# MNN computes with less precision on some machines: where its rms error is larger than so many times ours,
# it has computed something else.
MOST_ERROR, LESS_EXACT = 10, ("mnn",)

PREPACKED = Comparison(
    "prepared vs best prepacked",
    "fastconv_prepared",
    ("torch_channels_last", "onnxruntime", "openvino", "ncnn", "mnn"),
    (FORWARD,),
    ours_too="fastconv_prepared_nhwc",
    own_layout=("torch_channels_last",),
)
COMPARISONS = (
    Comparison("plain vs PyTorch NCHW", "fastconv_plain", ("torch_nchw",)),
    PREPACKED,
    Comparison(
        "gradient vs channels_last",
        "fastconv_plain",
        ("torch_channels_last",),
        (INPUT_GRAD, WEIGHT_GRAD),
    ),
    Comparison(
        "pool vs best of PyTorch and ONNX Runtime",
        "pool_fastconv",
        ("pool_torch_nchw", "pool_torch_channels_last", "pool_onnxruntime"),
        (FORWARD,),
    ),
    Comparison("pool gradient vs PyTorch NCHW", "pool_fastconv", ("pool_torch_nchw",), (INPUT_GRAD,)),
    Comparison(
        "NHWC pool vs channels_last",
        "pool_fastconv_nhwc",
        ("pool_torch_channels_last",),
        (FORWARD, INPUT_GRAD),
    ),
    Comparison("filter vs OpenCV", "fastconv_signal", ("opencv",), (FORWARD,)),
    Comparison(
        "filter vs best SciPy transform",
        "fastconv_signal",
        ("scipy_fftconvolve", "scipy_oaconvolve"),
        (FORWARD,),
    ),
    Comparison("filter vs SciPy correlate2d", "fastconv_signal", ("scipy_correlate2d",), (FORWARD,)),
    Comparison("filter vs SciPy ndimage", "fastconv_signal", ("scipy_ndimage",), (FORWARD,)),
)


@dataclass(frozen=True)
class Ratio:
    """`best`: of the shortest times over all rounds; `typical`: median of the rounds' ratios."""

    case: CaseResult
    comparison: Comparison
    rival: str
    best: float
    typical: float

    @property
    def is_loss(self) -> bool:
        return self.best < 1


def ratio(case: CaseResult, comparison: Comparison) -> Ratio | None:
    """None where the comparison does not apply, or one side has no valid timing."""
    valid = {name: result for name, result in case.peers.items() if result.is_valid}
    if case.direction not in comparison.directions or comparison.ours not in valid:
        return None
    usual = valid[comparison.ours]
    rivals = [name for name in comparison.rivals if name in valid and is_comparable(name, valid[name], usual)]
    if not rivals:
        return None
    found = []
    for rival in rivals:
        names = [name for name in comparison.ours_against(rival) if name in valid]
        ours = valid[min(names, key=lambda name: valid[name].seconds)]
        rounds = zip(valid[rival].rounds, ours.rounds, strict=False)
        typical = median(theirs / own for theirs, own in rounds)
        found.append(Ratio(case, comparison, rival, valid[rival].seconds / ours.seconds, typical))
    return min(found, key=lambda ratio: ratio.best)


def is_comparable(name: str, rival: PeerResult, ours: PeerResult) -> bool:
    """Unless both errors are known, two results are."""
    if name not in LESS_EXACT or rival.rms_error is None or not ours.rms_error:
        return True
    return rival.rms_error <= MOST_ERROR * ours.rms_error


def ratios(cases: Iterable[CaseResult], comparison: Comparison) -> list[Ratio]:
    return [found for case in cases if (found := ratio(case, comparison))]


@dataclass(frozen=True)
class Summary:
    """Many ratios of one comparison in a few numbers."""

    count: int
    geometric_mean: float
    typical_geometric_mean: float
    minimum: float
    losses: int

    @classmethod
    def of(cls, found: list[Ratio]) -> Summary:
        return cls(
            count=len(found),
            geometric_mean=geometric_mean(r.best for r in found),
            typical_geometric_mean=geometric_mean(r.typical for r in found),
            minimum=min(r.best for r in found),
            losses=sum(r.is_loss for r in found),
        )


def geometric_mean(values: Iterable[float]) -> float:
    return exp(mean(map(log, values)))
