"""The page of distilled inputs: pictures of them, and how well they meet the statistics of the network."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from markupsafe import Markup

from brecq.page import charts
from brecq.page.record import Origin
from brecq.page.render import render
from brecq.synthesis.match import LayerMatch

DISTILLED_PAGE = "distilled.html"
NOWHERE = Origin()


def distilled_page(
    samples: int,
    seconds: float,
    how: str,
    layers: Sequence[LayerMatch],
    sheet: bytes | None,
    origin: Origin = NOWHERE,
) -> str:
    """The page as HTML; `how` the inputs were made, in words; `sheet` is a contact sheet as PNG, `None` where they are
    no pictures."""
    drawn = [
        Markup(charts.matches(f"{what} of each batch norm's input", [("noise", before), ("distilled", after)]))
        for what, before, after in (
            ("Mean", [x.mean_before for x in layers], [x.mean_after for x in layers]),
            ("Standard deviation", [x.std_before for x in layers], [x.std_after for x in layers]),
        )
        if layers
    ]
    return render(
        "distilled.html.j2",
        title=origin.title("Calibration inputs"),
        command=origin.command,
        samples=samples,
        seconds=seconds,
        how=how,
        layers=layers,
        charts=drawn,
        sheet=None if sheet is None else base64.b64encode(sheet).decode(),
    )
