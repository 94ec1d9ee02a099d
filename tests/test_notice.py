from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import brecq
from brecq import QuantConfig
from brecq.notice import BrecqWarning, warn


def test_a_warning_is_told_at_the_line_that_called_brecq() -> None:
    """Not at a decorator's of Python."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        brecq.quantize(nn.Sequential(nn.Linear(3, 3)), torch.randn(40, 3), QuantConfig(8, 8, method="rtn"))
    ours = [each for each in found if "comes from 120 values" in str(each.message)]
    assert [(each.category, each.filename) for each in ours] == [(BrecqWarning, __file__)]
    with pytest.warns(BrecqWarning, match="^text$") as told:
        warn("text")
    assert told[0].filename == __file__


def test_an_import_prints_nothing_and_hides_no_other_record() -> None:
    code = (
        "import brecq, logging; brecq.quantize; from brecq import pipeline\n"
        "logging.getLogger('torch.utils._pytree').warning('%s is another', int)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.rpartition("]")[2].strip() for line in done.stderr.splitlines()] == ["<class 'int'> is another"]
