"""Browsers: the page's own module computes in Chromium, with onnxruntime-web, what ONNX Runtime computes.

Needs Chromium, npm and the package onnxruntime-web (fetched by npm, or unpacked where ONNXRUNTIME_WEB says).
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import brecq
from brecq import QuantResult
from brecq.errors import ConfigError, ExportError

pytest.importorskip("onnxruntime", reason="needs the extra onnx")

Quantized = Callable[..., QuantResult]

HARNESS = """<!doctype html><title>test</title><script type="module">
const send = (body) => fetch("/found", { method: "POST", body: JSON.stringify(body) });
try {
  const { frame, load, prepare, run } = await import("./network.js");
  const { config, pixels, shape, picture } = await (await fetch("given.json")).json();
  const networks = await load(config);
  const found = {};
  for (const which of ["float", "quantized"]) {
    const { outputs, names } = await run(networks, which, new Float32Array(pixels), shape);
    found[which] = Array.from(outputs[names[0]].data);
  }
  const canvas = document.createElement("canvas");
  const source = new OffscreenCanvas(picture.width, picture.height);
  const context = source.getContext("2d");
  context.fillStyle = "rgb(255 0 51)";
  context.fillRect(0, 0, picture.width, picture.height);
  found.prepared = Array.from(prepare(config.preprocessing, source.transferToImageBitmap(), canvas));
  found.frames = picture.cases.map(([preprocessing, width, height]) => frame(preprocessing, width, height));
  await send(found);
} catch (error) {
  await send({ error: String(error.stack ?? error) });
}
</script>"""


def test_the_folder_holds_a_page_and_two_networks(quantized: Quantized, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n</script>dog\n")
    result = quantized("ResNet")
    exported = brecq.export(
        result, tmp_path / "web", "web", labels=str(tmp_path / "names.txt"), title="A <title>", runtime="ort/"
    )
    assert {file.name for file in exported.files} == {file.name for file in (tmp_path / "web").iterdir()}
    page = (tmp_path / "web" / "index.html").read_text()
    assert "<title>A &lt;title></title>" in page
    assert page.count("</script>") == 1
    config = json.loads(re.findall(r"const config = (.*);\n", page)[0])
    assert config["labels"] == ["cat", "</script>dog"]
    assert config["runtime"] == "ort/"
    assert config["preprocessing"]["size"] == [16, 16]
    assert config["bytes"]["quantized"] == (tmp_path / "web" / "quantized.onnx").stat().st_size
    package = json.loads((tmp_path / "web" / "package.json").read_text())
    assert "onnxruntime-web" in package["dependencies"]
    brecq.export(result, tmp_path / "web", "web")  # its own files are replaced
    found = brecq.verify(result, tmp_path / "web", result.example_inputs[0], format="web")
    assert found.as_expected, found.failures
    assert "in place of a browser" in found.runtime


def test_what_the_page_cannot_show_is_refused_in_a_line(quantized: Quantized, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runtime is 'ort'; give a URL or a path that ends in /"):
        brecq.export(quantized("ResNet"), tmp_path / "web", "web", runtime="ort")
    with pytest.raises(ConfigError, match=r"labels is 'none\.txt', which cannot be read"):
        brecq.export(quantized("ResNet"), tmp_path / "web", "web", labels="none.txt")
    with pytest.raises(
        ExportError, match=r"takes one picture \[3, height, width\], and this network .*export to onnx"
    ):
        brecq.export(quantized("TwoBranch"), tmp_path / "web", "web")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index.html").write_text("mine")
    with pytest.raises(ExportError, match=r"index\.html is not brecq's"):
        brecq.export(quantized("ResNet"), tmp_path / "web", "web")


@pytest.fixture(scope="session")
def onnxruntime_web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `dist` of the package."""
    if "ONNXRUNTIME_WEB" in os.environ:
        return Path(os.environ["ONNXRUNTIME_WEB"]) / "dist"
    if shutil.which("npm") is None:
        pytest.skip("needs npm to fetch onnxruntime-web")
    from brecq.deploy.web.write import RUNTIME

    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "pack", f"onnxruntime-web@{RUNTIME}", "--silent"]
    try:
        packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot fetch onnxruntime-web here: {error}")
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "dist"


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what is posted."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript", ".wasm": "application/wasm",
    }  # fmt: skip
    found: dict[str, Any]
    done: threading.Event

    def do_POST(self) -> None:
        self.found.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.done.set()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def chromium(browser: str, tmp_path: Path) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Open `test.html` of a folder; what it posts."""
    started: list[subprocess.Popen[bytes]] = []
    servers = []

    def visit(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        handler = type("Handler", (_Handler,), {"found": found, "done": threading.Event()})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/test.html"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
        command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", url]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        assert handler.done.wait(120), "Chromium posted nothing"
        return found

    yield visit
    for process in started:
        process.terminate()
        process.wait(20)
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_chromium_computes_what_onnx_runtime_computes(
    networks: ModuleType,
    quantized: Quantized,
    onnxruntime_web: Path,
    chromium: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    from brecq.data import Preprocessing
    from brecq.deploy.onnx import session

    folder = tmp_path / "web"
    brecq.export(quantized("ResNet"), folder, "web", runtime="ort/")
    (folder / "ort").mkdir()
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(onnxruntime_web / name, folder / "ort")
    x = networks.inputs(networks.build(networks.ResNet), 1, seed=5)[0].numpy()
    config = json.loads(re.findall(r"const config = (.*);\n", (folder / "index.html").read_text())[0])
    config["preprocessing"] |= {"mean": [0.5, 0.25, 0.0], "std": [0.5, 0.5, 0.2], "color": "BGR"}
    cases = [
        Preprocessing.imagenet(),
        Preprocessing.imagenet().replace(size=(64, 96), resize=None, fit="letterbox"),
        Preprocessing.imagenet().replace(size=(64, 96), resize=None, fit="corner"),
        Preprocessing.imagenet().replace(size=(64, 96), resize=None),
    ]
    given = {
        "config": config, "pixels": x.reshape(-1).tolist(), "shape": list(x.shape),
        "picture": {"width": 40, "height": 30, "cases": [[_plain(case), 200, 120] for case in cases]},
    }  # fmt: skip
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "test.html").write_text(HARNESS)
    found = chromium(folder)
    assert "error" not in found, found
    for which in ("float", "quantized"):
        expected = session.load(folder / f"{which}.onnx")(x)[0].reshape(-1)
        assert np.abs(np.array(found[which]) - expected).max() <= np.ptp(expected) / 255  # a step
    red, green, blue = 1.0, 0.0, 0.2
    colours = [(blue - 0.5) / 0.5, (green - 0.25) / 0.5, (red - 0.0) / 0.2]
    np.testing.assert_allclose(
        np.array(found["prepared"]).reshape(3, -1), np.array(colours)[:, None] * np.ones(256), 1e-5
    )
    for case, (left, top, width, height) in zip(cases, found["frames"], strict=True):
        placed = case.place(120, 200)
        assert abs(left - placed.left) <= 1
        assert abs(top - placed.top) <= 1
        assert abs(width / 200 - placed.scale_x) < 0.01
        assert abs(height / 120 - placed.scale_y) < 0.01


def _plain(case: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(case)
