from __future__ import annotations

import shlex

from brecq.capture.culprit import _by_name
from brecq.text import some


def test_dots_stand_for_names_that_are_left_out() -> None:
    assert some(["a", "b"], 2) == "a, b"
    assert some("abc", 2) == "a, b, ..."
    assert some([], 2) == ""


def test_a_suggested_command_means_its_names_to_a_shell() -> None:
    command = _by_name(["<b>stem</b>", "a b"]).partition(" in Python, ")[2].partition(" on the command line")[0]
    assert shlex.split(command) == ["--submodule", "<b>stem</b>", "--submodule", "a b"]
