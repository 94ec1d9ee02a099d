"""Tables: what they hold, and that they fit."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
from rich.console import Console
from rich.table import Table

from brecq import Evaluation
from brecq.cli.render import ResultRow, describe_evaluation, result_table, scope_table
from brecq.report import ScopeEntry
from brecq.units import format_bytes, measure, short_count, significant

LABELED = Evaluation(samples=800, top1=82.125, top5=95.5, agreement=97.25, sqnr=21.04, seconds=3.0)
UNLABELED = Evaluation(samples=24, top1=None, top5=None, agreement=97.25, sqnr=21.04, seconds=3.0)


def lines(table: Table, width: int = 80) -> list[str]:
    """The table as a pipe gets it."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def entry(op: str, layer: str, weights: str = "4 bit asymmetric per channel", reason: str = "") -> ScopeEntry:
    return ScopeEntry(
        op=op, layer=layer, block=layer, kind="conv2d", weights=weights, inputs="8 bit asymmetric per tensor",
        output="float", reason=reason,
    )  # fmt: skip


def test_float_nearest_and_reconstructed_side_by_side() -> None:
    rows = [
        ResultRow("float", Evaluation(800, 83.0, 96.0, None, None, 2.0), 18_600_000, None),
        ResultRow("rounding to nearest", LABELED, 2_400_000, 1.5),
        ResultRow("reconstructed", LABELED, 2_400_000, 185.0),
    ]
    printed = lines(result_table(rows))
    assert printed[0] == "Result on 800 samples"
    assert printed[1].split() == ["top-1", "top-5", "agreement", "SQNR"]
    assert printed[2].split() == ["%", "%", "%", "dB", "weights", "time"]
    assert printed[4].split() == ["float", "83.00", "96.00", "18.60", "MB"]
    assert " ".join(printed[5].split()) == "rounding to nearest 82.12 95.50 97.25 21.0 2.400 MB 1.5 s"
    assert " ".join(printed[6].split()) == "reconstructed 82.12 95.50 97.25 21.0 2.400 MB 3 min 05 s"
    assert max(map(len, printed)) <= 80


def test_columns_that_nothing_fills_are_left_out() -> None:
    printed = " ".join(lines(result_table([ResultRow("float", None, 100, None), ResultRow("q", UNLABELED, 50, 1.0)])))
    assert "top-1" not in printed
    assert "agreement" in printed
    bare = " ".join(lines(result_table([ResultRow("float", None, 100, None)])))
    assert bare.split()[:2] == ["Result", "weights"]


def test_an_evaluation_on_one_line() -> None:
    assert describe_evaluation(LABELED) == (
        "top-1 82.12 %, top-5 95.50 %, agreement with float 97.25 %, SQNR 21.0 dB, 800 samples in 3.0 s"
    )
    assert describe_evaluation(UNLABELED) == "agreement with float 97.25 %, SQNR 21.0 dB, 24 samples in 3.0 s"
    scored = dataclasses.replace(LABELED, scored="output 'out'", reference_metrics={"top-1 %": 83.0, "top-5 %": 96.0})
    assert describe_evaluation(scored) == (
        "top-1 82.12 % (float 83.00 %; output 'out'), top-5 95.50 % (float 96.00 %), agreement with float 97.25 % "
        "(output 'out'), SQNR 21.0 dB, 800 samples in 3.0 s"
    )
    judged = Evaluation(
        24, task="mine", metrics={"agreement %": 7.0, "e": 2.0}, reference_metrics={"e": 1.5}, seconds=3
    )
    assert describe_evaluation(judged) == "agreement 7.00 %, e 2 (float 1.5), 24 samples in 3.0 s"
    left_out = Evaluation(24, task="regression", metrics={"RMSE": 1.5}, seconds=3.0, notes=["3 of 6 are left out"])
    assert describe_evaluation(left_out) == "RMSE 1.5, 24 samples in 3.0 s; 3 of 6 are left out"
    unsure = Evaluation(24, task="detection", against_reference=True, seconds=3.0)
    assert describe_evaluation(unsure).startswith("nothing to compare: the float network decides nothing there (")


def test_ops_treated_alike_share_a_line() -> None:
    entries = [
        entry("conv2d", "stem", "8 bit symmetric per channel", "first layer"),
        *(entry(f"conv2d_{index}", f"layer{index}.conv") for index in range(1, 20)),
    ]
    printed = " ".join(" ".join(lines(scope_table(entries), width=160)).split())
    assert "1 conv2d (stem) 8 bit symmetric per channel 8 bit asymmetric per tensor float first layer" in printed
    assert "19 conv2d 4 bit asymmetric per channel" in printed
    assert "layer7" not in printed


def test_the_full_scope_names_every_op() -> None:
    entries = [entry(f"conv2d_{index}", f"layer{index}.conv") for index in range(5)]
    printed = " ".join(lines(scope_table(entries, full=True), width=160))
    for index in range(5):
        assert f"conv2d_{index} (layer{index}.conv)" in printed
    assert "relu_3 " in " ".join(lines(scope_table([entry("relu_3", "")], full=True)))


def test_the_scope_fits_into_80_columns_without_cutting_text() -> None:
    printed = lines(scope_table([entry("conv2d", "features.stage3.block2.depthwise", reason="a rule sets it")]))
    assert max(map(len, printed)) <= 80
    assert "…" not in "".join(printed)


def test_on_a_narrow_terminal_no_number_is_cut_off() -> None:
    rows = [ResultRow("float", None, 123_000_000, None), ResultRow("rounding to nearest", UNLABELED, 50_000_000, 61.0)]
    narrow = lines(result_table(rows), width=40)
    text = " ".join(" ".join(narrow).split())
    assert text.startswith("Result on ")
    assert "float weights: 123.0 MB" in text
    assert "time: 1 min 01 s" in text
    assert max(map(len, narrow)) <= 40


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (812, "812"), (999, "999"), (1000, "1 k"), (8130, "8.13 k"), (999_600, "1 M"), (11_700_000, "11.7 M"),
     (1_814_000_000, "1.81 G"), (4e12, "4e+03 G")],
)  # fmt: skip
def test_counts(number: float, text: str) -> None:
    assert short_count(number) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (84, "84 B"), (999, "999 B"), (10_684, "10.68 kB"), (999_960, "1.000 MB"), (18_600_000, "18.60 MB"),
     (2_047_000_000, "2.047 GB")],
)  # fmt: skip
def test_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("RMSE", 0.00045721, "0.00045721"), ("perplexity", 12.345678, "12.346"), ("top-1 %", 71.5, "71.50"),
        ("flips %", 0.0, "0.00"), ("flips %", 0.004, "0.004"), ("agreement %", 99.996, "99.996"),
        ("agreement %", 100.0, "100.00"), ("SQNR dB", 21.04, "21.0"), ("PSNR dB", 31.256, "31.26"),
        ("SQNR dB", math.inf, "∞"), ("SQNR dB", -math.inf, "-∞"), ("AP %", math.nan, "NaN"), ("AP %", None, ""),
    ],
)  # fmt: skip
def test_measures(name: str, value: float | None, text: str) -> None:
    assert measure(name, value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12, "0.120"), (1.0, "1.00"), (250.4, "250"), (0.000513, "0.000513"), (5.13e-7, "5.13e-07"), (0.0, "0.00")],
)
def test_digits_that_count(value: float, text: str) -> None:
    assert significant(value) == text
