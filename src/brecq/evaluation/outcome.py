"""What an evaluation measured."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        samples: inputs evaluated.
        top1, top5: percent of samples whose label has the largest, or one of the five largest, scores; `None`
            without labels, `top5` also with five classes or fewer.
        agreement: percent of predictions (samples, or pixels or tokens) equal to the reference's; `None` without
            a reference or with outputs that are no class scores.
        sqnr: signal-to-quantization-noise ratio of the outputs against the reference's, in dB: 10·log10(Σr² / Σ(r-y)²)
            over all samples; infinite where the outputs are identical; `None` without a reference. Of several outputs
            it is the lowest.
        seconds: wall time, the reference's included.
        outputs: the ratio of each output by name (or place, in a tuple); empty if there is only one.
        scored: the output that top-1, top-5 and agreement are of, and along which axis; empty where that is plain
            (one output [N, classes]) or there are no class scores.
        task: the name of the metric, where one was given: then `agreement` is of its decisions, whatever they are.
        metrics: what it computed of the network, by name, the most telling first. reference_metrics: of the reference;
            without a metric its `top-1 %` and `top-5 %`, where there are labels.
        against_reference: the data said nothing of what is right: `metrics` take the reference's decisions for that.
        flips: percent of decisions that are other ones than the reference's, 100 - agreement.
        notes: what the metric left out, in words, such as targets that are NaN.
    """

    samples: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    sqnr: float | None = None
    seconds: float = 0.0
    outputs: dict[str, float] = field(default_factory=dict)
    scored: str = ""
    task: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    reference_metrics: dict[str, float] = field(default_factory=dict)
    against_reference: bool = False
    flips: float | None = None
    notes: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, float]:
        """What tables show, by name: the task's metric and flips, or top-1, top-5 and agreement; and the SQNR."""
        if self.task:
            against = " vs float" if self.against_reference else ""
            found: dict[str, float | None] = {_named(name, against): value for name, value in self.metrics.items()}
            found["flips %"] = self.flips
        else:
            found = {"top-1 %": self.top1, "top-5 %": self.top5, "agreement %": self.agreement}
        found["SQNR dB"] = self.sqnr
        return {name: value for name, value in found.items() if value is not None}


def _named(name: str, against: str) -> str:
    """`AP vs float %` of `AP %`."""
    what, _, unit = name.rpartition(" ")
    return f"{what}{against} {unit}" if what and unit in ("%", "dB") else f"{name}{against}"
