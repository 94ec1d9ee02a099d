"""A result on the hub: the card tells what it is, what was pushed is what is loaded, and nothing else travels."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import brecq
from brecq.cli import app
from brecq.errors import CheckpointError, ConfigError, SourceError
from brecq.page.card import card
from brecq.page.record import Record, Row
from brecq.sources import load_source
from brecq.storage.hub import repository

hub = pytest.importorskip("huggingface_hub")


class StandIn(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that a small repository needs."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    COMMIT = "c" * 40

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/me/net"})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            host = f"http://{self.headers['Host']}"
            self.answer({"commitUrl": f"{host}/me/net/commit/{self.COMMIT}", "commitOid": self.COMMIT})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": "unknown"}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/me/net"):
            if "/tree/" in path:
                listed = [
                    {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                    for name, content in self.files.items()
                ]
                self.answer(listed)
            else:
                siblings = [{"rfilename": name} for name in self.files]
                self.answer({"id": "me/net", "sha": self.COMMIT, "siblings": siblings, "private": False})
        elif path.startswith("/me/net/resolve/") and path.rpartition("/")[2] in self.files:
            content = self.files[path.rpartition("/")[2]]
            tag = f'"{hash(content) & 0xFFFFFFFF:x}"'
            self.answer(content, ETag=tag, X_Repo_Commit=self.COMMIT)
        else:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """What the stand-in holds, after `huggingface_hub` was told to speak with it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    StandIn.files = {}
    api = hub.HfApi(endpoint=address, token="hf_test")
    for name in ("create_repo", "upload_folder", "snapshot_download"):
        monkeypatch.setattr(hub, name, getattr(api, name))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", address)
    path = hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("://")[2].partition("/")[2]
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{path}")
    yield StandIn.files
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def made(networks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = networks.build(networks.MobileNet)
    data = torch.randn(16, *networks.inputs(model)[0].shape[1:])
    result = brecq.quantize(model, data, brecq.QuantConfig(weights=4, activations=4, method="rtn"))
    result.metadata["source"] = {"spec": "hf:somebody/mobilenet", "weights": None}
    folder = result.save(tmp_path_factory.mktemp("made") / "out")
    rows = [Row("float", {"top-1 %": 80.0}, 1000), Row("rounding to nearest", {"top-1 %": 71.5}, 200)]
    Record("brecq quantize hf:somebody/mobilenet -w 4", rows, 64).save(folder)
    (folder / "secret.txt").write_text("not to be uploaded")
    (folder / "report.html").write_text("<p>pictures</p>")
    return folder


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_what_was_pushed_is_what_is_loaded(made: Path, files: dict[str, bytes]) -> None:
    output = run("push", made, "me/net", "--license", "apache-2.0")
    assert f"me/net/commit/{StandIn.COMMIT}" in output.replace("\n", "")
    assert sorted(files) == [
        "README.md", "manifest.json", "program.json", "report.json", "timing.json", "weights.safetensors",
    ]  # fmt: skip
    mine, theirs = brecq.load(made), brecq.load("hf:me/net")
    assert theirs.digest() == mine.digest()
    with torch.no_grad():
        assert torch.equal(theirs.model(*mine.example_inputs), mine.model(*mine.example_inputs))


def test_a_file_that_was_changed_there_is_refused(made: Path, files: dict[str, bytes]) -> None:
    run("push", made, "me/net", "--report")
    assert "report.html" in files
    content = bytearray(files["weights.safetensors"])
    content[-1] ^= 1
    files["weights.safetensors"] = bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        brecq.load("hf:me/net")


def test_a_repository_that_is_not_there(files: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="hf:me/other cannot be fetched"):
        brecq.load("hf:me/other")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a hub where nobody answers; nothing is asked of it twice."""

    def again(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s before it asks again")

    with socket.socket() as reserved:  # bound and not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        monkeypatch.setattr(hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", again)
        yield address


def test_a_hub_that_is_not_reached(made: Path, nobody: str) -> None:
    done = CliRunner().invoke(app, ["push", str(made), "me/net"])
    assert done.exit_code == 2
    assert "cannot push to me/net" in done.output
    assert f"the hub at {nobody} is not reached" in " ".join(done.output.split())
    assert "HF_TOKEN" not in done.output
    with pytest.raises(CheckpointError, match=rf"me/net cannot be fetched: the hub at {nobody} is not reached"):
        brecq.load("hf:me/net")
    for spec in ("hf:me/net", "timm:resnet18"):
        pytest.importorskip({"hf": "transformers"}.get(spec.partition(":")[0], "timm"))
        with pytest.raises(SourceError, match=rf"the hub at {nobody} is not reached"):
            load_source(spec)
    assert not hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(("status", "advice"), [(501, "the hub answered with status 501: try again later"),
                                                (403, "log in with `hf auth login`")])  # fmt: skip
def test_a_hub_that_refuses(
    made: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, status: int, advice: str
) -> None:
    monkeypatch.setattr(StandIn, "do_POST", lambda self: self.answer({"error": "no"}, status))
    monkeypatch.setattr("time.sleep", lambda _: None)
    done = CliRunner().invoke(app, ["push", str(made), "me/net"])
    assert done.exit_code == 2
    assert advice in " ".join(done.output.split())
    assert ("HF_TOKEN" in done.output) == (status == 403)


def test_the_card(made: Path) -> None:
    run("card", made, "--license", "mit")
    text = (made / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "library_name": "brecq", "license": "mit", "base_model": "somebody/mobilenet",
        "base_model_relation": "quantized", "pipeline_tag": "image-classification",
        "tags": ["brecq", "quantized", "4-bit", "8-bit"],
    }  # fmt: skip
    result = brecq.load(made)
    assert "| rounding to nearest | 71.50 | 200 B |" in text
    assert "brecq quantize hf:somebody/mobilenet -w 4" in text
    assert result.digest() in text
    assert "## Licence" not in text
    assert "\n\n\n\n" not in text


@pytest.mark.parametrize(
    ("shapes", "task", "tag", "call"),
    [
        ([(2, 3, 8, 8)], None, "pipeline_tag: image-classification\n", "result.model(inputs)  # float32 [N, 3, 8, 8]"),
        ([(2, 1, 900)], None, "", "result.model(inputs)"),  # sound, say
        ([(2, 3, 8, 8), (2, 5)], None, "pipeline_tag: image-classification\n", "result.model(*inputs)"),
        ([(2, 3, 8, 8)], "segmentation", "pipeline_tag: image-segmentation\n", "result.model(inputs)"),
    ],
)
def test_the_card_says_what_goes_in(
    made: Path, shapes: list[tuple[int, ...]], task: str | None, tag: str, call: str
) -> None:
    result = brecq.load(made)
    result.example_inputs = tuple(torch.zeros(shape) for shape in shapes)
    result.metadata["task"] = task
    text = card(result, Record("", [Row("float", {"top-1 %": 80.0}, 1000)], 64), "me/net")
    assert f"outputs = {call}" in text
    assert ("pipeline_tag" in text) == bool(tag)
    assert tag in text


@pytest.mark.parametrize(("target", "how"), [(None, "InferenceSession"), ("tensorrt", "trtexec --onnx=m.onnx")])
def test_files_are_run_where_the_result_was_made_for(made: Path, target: str | None, how: str) -> None:
    result = brecq.load(made)
    result.config = replace(result.config, target=target)
    assert how in card(result, Record(), "me/net", ["m.onnx", "notes.txt"])


def test_files_of_other_results_are_left_out(made: Path, files: dict[str, bytes]) -> None:
    """Also one whose name is that of a file of this result, in another format."""
    digest = brecq.load(made).digest().encode()
    contents = {"mine.onnx": b"x" + digest, "mine.encodings": b"", "other.onnx": b"x" + 64 * b"0", "other.bin": b"",
                "empty.tflite": b""}  # fmt: skip
    for name, content in contents.items():
        (made / name).write_bytes(content)
    try:
        told = run("card", made)
        text = (made / "README.md").read_text()
        run("push", made, "me/net")
    finally:
        for name in contents:
            (made / name).unlink()
    for name in ("other.onnx", "other.bin", "empty.tflite"):
        assert re.search(f"left out +{name}: exported from another result, or not by brecq", told)
        assert name not in text
    assert "`mine.onnx`" in text
    assert {name for name in contents if name in files} == {"mine.onnx", "mine.encodings"}


def test_a_card_of_somebody_else_is_kept(made: Path, tmp_path: Path) -> None:
    (made / "README.md").write_text("my notes")
    done = CliRunner().invoke(app, ["card", str(made)])
    assert done.exit_code == 2
    assert "is not brecq's" in done.output
    assert (made / "README.md").read_text() == "my notes"
    run("card", made, "--force")
    assert "## Licence" in (made / "README.md").read_text()


@pytest.mark.parametrize("name", ["net", "a/b/c", "/net", "me/", "me/net@", "me/my net"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match="is no repository of the hub"):
        repository(name)


def test_names_and_revisions() -> None:
    assert repository("me/net") == ("me/net", None)
    assert repository("hf:me/net@v1") == ("me/net", "v1")
