"""Hooks of mkdocs: the page of the command line comes from the program, charts and equations are drawn.

Material draws Mermaid's charts and equations with scripts that it fetches; here nothing is fetched.
"""

from __future__ import annotations

import html
import re
from graphlib import TopologicalSorter
from io import StringIO
from typing import Any

import typer.main
from matplotlib import rc_context
from matplotlib.figure import Figure
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

PAGE = "reference/cli.md"
WIDTH, HEIGHT, GAP = 208, 46, 24


def on_files(files: Files, config: Any) -> Files:
    """Add the page of the command line."""
    from brecq.cli import app

    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="brecq")
    text = get_docs_for_click(obj=command, ctx=context, name="brecq", title="Command line")
    for name, each in command.commands.items():  # typer cuts their sentences off
        text = text.replace(f"* `{name}`: {each.get_short_help_str()}", f"* `{name}`: {each.help.splitlines()[0]}")
    files.append(File.generated(config, PAGE, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Charts of Mermaid and equations as pictures."""
    markdown = re.sub(r"^\$\$\n(.*?)\n\$\$$", lambda found: equation(found[1]), markdown, flags=re.M | re.S)
    return re.sub(r"^```mermaid\nflowchart TD\n(.*?)^```$", lambda found: chart(found[1]), markdown, flags=re.M | re.S)


def equation(source: str) -> str:
    """TeX as SVG in the page's color: matplotlib sets what it knows of it."""
    ink = "#010203"
    with rc_context({"svg.hashsalt": "brecq", "mathtext.fontset": "stix"}):
        figure, stream = Figure(figsize=(0.1, 0.1)), StringIO()
        figure.text(0, 0, f"${source}$", fontsize=13, color=ink)
        figure.savefig(stream, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", stream.getvalue(), flags=re.S)
    text = re.sub(r"\s*\n\s*", " ", text[text.index("<svg") :]).replace(ink, "currentColor")
    label = html.escape(source, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}" style="max-width: 100%"', 1) + "\n"


def chart(source: str) -> str:
    """`a["<b>name</b> · text"]` and `a --> b`, a line each, as SVG: what others point at stands below them."""
    names = dict(re.findall(r'^\s*(\w+)\["(.*?)"\]$', source, re.M))
    arrows = re.findall(r"^\s*(\w+) --> (\w+)$", source, re.M)
    above: dict[str, set[str]] = {name: {a for a, b in arrows if b == name} for name in names}
    rows: dict[str, int] = {}
    for name in TopologicalSorter(above).static_order():
        rows[name] = max((rows[each] + 1 for each in above[name]), default=0)
    lines = [[name for name in names if rows[name] == row] for row in range(max(rows.values()) + 1)]
    widest = max(map(len, lines)) * (WIDTH + GAP) - GAP
    place = {
        name: ((widest - len(line) * (WIDTH + GAP) + GAP) / 2 + i * (WIDTH + GAP), row * (HEIGHT + 2 * GAP))
        for row, line in enumerate(lines)
        for i, name in enumerate(line)
    }
    half = WIDTH / 2
    drawn = [
        f'<line x1="{place[a][0] + half}" y1="{place[a][1] + HEIGHT}" x2="{place[b][0] + half}" y2="{place[b][1]}" '
        'stroke="currentColor" stroke-opacity=".35"/>'
        for a, b in arrows
    ]
    for name, label in names.items():
        x, y = place[name]
        title, _, text = re.sub("</?b>", "", label).partition(" · ")
        drawn.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="var(--md-code-bg-color)"/>'
            f'<text x="{x + half}" y="{y + 19}" text-anchor="middle" font-weight="600">{title}</text>'
            f'<text x="{x + half}" y="{y + 36}" text-anchor="middle" font-size="10.5">{text}</text>'
        )
    size = f"0 0 {widest} {len(lines) * (HEIGHT + 2 * GAP) - 2 * GAP}"
    return (
        f'<svg viewBox="{size}" role="img" aria-label="which package imports which" font-size="13" '
        f'fill="currentColor">{"".join(drawn)}</svg>\n'
    )
