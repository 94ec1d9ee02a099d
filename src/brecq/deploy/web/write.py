"""The format `web`: the quantized and the float network as ONNX, and a page that shows them side by side."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from brecq.deploy.formats import Exported
from brecq.deploy.onnx.reference import write_float
from brecq.deploy.onnx.write import write as write_onnx
from brecq.errors import ConfigError, ExportError
from brecq.storage.files import refuse_strangers
from brecq.storage.files import write as write_file
from brecq.version import __version__

if TYPE_CHECKING:
    from brecq.result import QuantResult

RUNTIME = "1.30.0"
"""The version of onnxruntime-web that the tests ran."""

NAMES = ("package.json", "index.html", "network.js", "quantized.onnx", "float.onnx")
PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3, "resize": None, "color": "RGB", "fit": "crop", "fill": [0.0] * 3}
"""For results that do not tell how their pictures were prepared: scaled to the input, pixels in [0, 1]."""


def write(
    result: QuantResult,
    path: Path,
    *,
    labels: str = "",
    title: str = "Float and quantized, side by side",
    runtime: str = "node_modules/onnxruntime-web/dist/",
) -> Exported:
    """Write a folder with two ONNX files and a page. After `npm install` there, any web server shows it.

    The float network has the quantized one's weights in float: a result keeps no others.

    Args:
        labels: a text file with the name of each class, one a line. title: of the page.
        runtime: where the page finds onnxruntime-web: a URL, or a path from the page, that ends in a slash.

    Raises:
        ConfigError: `labels` cannot be read, or `runtime` does not end in a slash. ExportError: as `brecq.export`;
            also for networks that do not take one RGB picture.
    """
    if not runtime.endswith("/"):
        raise ConfigError(f"runtime is {runtime!r}; give a URL or a path that ends in /")
    names = _labels(labels)
    shapes = [list(value.shape[1:]) for value in result.example_inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][0] != 3:
        raise ExportError(f"the page takes one picture [3, height, width], and this network {shapes}; export to onnx")
    if path.exists() and not path.is_dir():
        raise ExportError(f"{path} is a file, and the page is a folder; choose another path")
    refuse_strangers(path, NAMES[:2], ExportError)
    package = {
        "format": f"brecq web {__version__}",
        "private": True,
        "dependencies": {"onnxruntime-web": RUNTIME},
        "scripts": {"start": "npx --yes serve"},
    }
    write_file(path / "package.json", json.dumps(package, indent=2).encode(), ExportError, parents=True)
    exported = write_onnx(result, path / "quantized.onnx")
    with TemporaryDirectory() as folder:
        write_float(result, Path(folder) / "float.onnx")
        write_file(path / "float.onnx", (Path(folder) / "float.onnx").read_bytes(), ExportError)
    recorded = result.metadata.get("preprocessing")
    config = {
        "format": f"brecq web {__version__}",
        "runtime": runtime,
        "labels": names,
        "bytes": {name: (path / f"{name}.onnx").stat().st_size for name in ("float", "quantized")},
        "preprocessing": recorded or {**PLAIN, "size": shapes[0][1:]},
    }
    write_file(path / "index.html", _page(title, config).encode(), ExportError)
    write_file(path / "network.js", _source("network.js").encode(), ExportError)
    files = tuple(path / name for name in NAMES)
    notes = [f"in {path}: npm install, then npm start (or another web server)", *exported.notes]
    if recorded is None:
        notes.append(
            "the result does not tell how pictures are prepared: they are scaled to the input, pixels in [0, 1]"
        )
    return Exported(path, files, sum(file.stat().st_size for file in files), tuple(notes))


def _page(title: str, config: dict[str, Any]) -> str:
    escaped = title.replace("&", "&amp;").replace("<", "&lt;")
    script = json.dumps(config).replace("<", "\\u003c")  # no label ends the script
    page = _source("page.html").replace("{title}", escaped).replace("{config}", script)
    return page.replace("<!doctype html>", f'<!doctype html><!-- "format": "brecq web {__version__}" -->', 1)


def _source(name: str) -> str:
    return resources.files("brecq.deploy.web").joinpath(name).read_text(encoding="utf-8")


def _labels(file: str) -> list[str]:
    if not file:
        return []
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"labels is {file!r}, which cannot be read as text ({error}); give a file of names"
        ) from error
