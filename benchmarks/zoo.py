"""Every architecture of `architectures.py` from capture to a running ONNX file, each in a process of its own.

    python benchmarks/zoo.py                 what has no result yet, then docs/zoo.md
    python benchmarks/zoo.py resnet18 t5     these, anew
    python benchmarks/zoo.py --failed        those that failed, anew
    python benchmarks/zoo.py --table         docs/zoo.md only
    python benchmarks/zoo.py --jobs 8 ...    so many at a time

Each network is captured, compared with its float self, prepared, cut into blocks that run in order, quantized (6-bit
weights, 8-bit activations, two steps a block), saved, loaded, exported to ONNX and executed. What is written per
network: how far each of these is from what it must equal. Weights are random: this says that the path holds for the
architecture, nothing about accuracy.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "zoo.jsonl"
TABLE = REPOSITORY / "docs" / "zoo.md"

CPU_SECONDS, MEMORY = 600, 24 << 30
STEPS = 2

EXACT = 1e-5
"""Largest difference, relative to the largest value, of graphs that must compute the same."""

CLOSE = 15.0
"""dB between the exported file and the fake-quantized network: integer kernels round a few codes otherwise."""


def examine(name: str, *, export: bool = True) -> dict[str, Any]:
    """Take one network all the way; what was measured.

    Raises:
        BrecqError: the network is refused. Exception: a fault of brecq.
    """
    os.environ.setdefault("BRECQ_KERNELS", "eager")  # compiling them takes longer than two steps a block
    import torch
    from architectures import ZOO, seeded

    import brecq
    from brecq.forward import call, like, tensors
    from brecq.graph.difference import flat, largest
    from brecq.graph.ops import WEIGHTED

    architecture = ZOO[name]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        model, batch = seeded(architecture.build), architecture.batch()
        seconds: dict[str, float] = {}
        clock = _Clock(seconds)
        calibration = [batch] if isinstance(batch, Mapping) or len(batch) > 1 else batch[0]
        recipe = brecq.Recipe.preset("fast").replace(steps=STEPS, batch_size=2, range_candidates=8, tuning=0.0)
        config = brecq.QuantConfig(weights=6, activations=8, recipe=recipe)
        result = brecq.quantize(model, calibration, config, submodule=architecture.submodule)
        clock("quantize")
        inputs: Any = result.example_inputs
        if architecture.submodule is None:
            inputs = like(batch, [value[:2] for value in tensors(batch)])
        with torch.no_grad():
            fake = flat(call(result.converted, inputs))
            whole = flat(call(result.model, batch)) if architecture.submodule is None else []
            real = flat(call(model, batch)) if architecture.submodule is None else []
        loaded = brecq.load(result.save(Path(folder) / "result"))
        with torch.no_grad():
            again = flat(call(loaded.model, inputs))
        same = len(again) == len(fake) and all(torch.equal(a, b) for a, b in zip(again, fake, strict=True))
        clock("save and load")
        scope = result.report.scope
        layers = [entry for entry in scope if entry.weights and entry.kind in WEIGHTED.values()]
        found: dict[str, Any] = {
            "nodes": len(result.converted.graph.nodes),
            "blocks": len(result.report.blocks),
            "layers": len(layers),
            "quantized": sum(entry.weights != "float" for entry in layers),
            "float": dict(Counter(f"{e.kind}: {e.reason}" for e in scope if e.weights == "float" and e.reason)),
            "notes": [note for note in result.report.notes if "one block" in note or "float32 copy" in note],
            "sqnr": None if not real else _sqnr(real, whole),
            "loaded equal": same,
            "seconds": seconds,
        }
        if not same:
            raise AssertionError(f"the loaded network differs by {largest(fake, again):.1e}")
        if export:
            file = Path(folder) / "network.onnx"
            brecq.export(result, file)
            clock("export")
            found["onnx"] = _agreement(file, inputs, fake)
            clock("run")
            if found["onnx"] is not None and found["onnx"] < CLOSE:
                raise AssertionError(f"the ONNX file is {found['onnx']:.1f} dB from the fake-quantized network")
        return found


def _agreement(file: Path, inputs: Any, expected: Any) -> float:
    import torch

    from brecq.deploy.onnx.session import load

    session = load(file)
    values = [inputs[name] for name in session.inputs] if isinstance(inputs, Mapping) else inputs
    outputs = [torch.as_tensor(value) for value in session(*(value.numpy() for value in values))]
    if len(outputs) != len(expected):
        raise AssertionError(f"the ONNX file returns {len(outputs)} tensors, the network {len(expected)}")
    return _sqnr(expected, outputs)


def _sqnr(expected: Any, found: Any) -> float:
    """The lowest of the outputs, in dB, 200 at most."""
    worst = 200.0
    for a, b in zip(expected, found, strict=True):
        if a.is_floating_point() and a.numel():
            noise = float((a.double() - b.double()).square().mean())
            power = float(a.double().square().mean())
            if noise > 0:
                worst = min(worst, 10 * math.log10(max(power, 1e-30) / noise))
    return round(worst, 1)


class _Clock:
    """Processor seconds of each stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.before = seconds, time.process_time()

    def __call__(self, stage: str) -> None:
        now = time.process_time()
        self.seconds[stage] = round(now - self.before, 1)
        self.before = now


def one(name: str) -> None:
    """Examine a network in this process and print the outcome as a line of JSON."""
    import traceback

    from brecq.errors import BrecqError

    outcome: dict[str, Any] = {"network": name}
    try:
        outcome |= {"result": "ok", **examine(name)}
    except BrecqError as error:
        outcome["result"] = f"refused: {' '.join(str(error).split())}"
    except ModuleNotFoundError as error:
        outcome["result"] = f"skipped: {error}"
    except Exception as error:  # a fault: what it says, and where
        last = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]]
        text = " ".join(str(error).split())[:300]
        outcome["result"] = f"failed: {type(error).__name__}: {text} ({' < '.join(reversed(last))})"
    import torch

    outcome["torch"] = torch.__version__
    usage = resource.getrusage(resource.RUSAGE_SELF)
    outcome |= {"cpu": round(usage.ru_utime + usage.ru_stime, 1), "memory": round(usage.ru_maxrss / 1e6, 2)}
    print(json.dumps(outcome))


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def run(names: list[str], jobs: int = 1) -> None:
    """Examine networks, `jobs` at a time, each in a process of its own; append what comes out."""
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in map(Future.result, as_completed([pool.submit(_outcome, name) for name in names])):
            with RESULTS.open("a") as file:
                file.write(json.dumps(outcome) + "\n")
            print(f"{outcome['network']}: {outcome['result'][:160]} ({outcome.get('cpu', '?')} s)", flush=True)


def _outcome(name: str) -> dict[str, Any]:
    from architectures import ZOO

    command = [sys.executable, str(Path(__file__).resolve()), "--one", name]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=_limit, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        outcome = json.loads(lines[-1])
    else:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        outcome = {"network": name, "result": f"failed: exit status {done.returncode}: {last[:300]}"}
    return {**outcome, "source": ZOO[name].source}


def results() -> dict[str, dict[str, Any]]:
    """The last outcome of each network."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {outcome["network"]: outcome for outcome in map(json.loads, lines)}


def table() -> str:
    """docs/zoo.md"""
    from architectures import ZOO

    found = {name: outcome for name, outcome in results().items() if name in ZOO}
    counts = Counter(outcome["result"].partition(":")[0] for outcome in found.values())
    seconds = sum(outcome.get("cpu", 0) for outcome in found.values())
    text = [
        "# Architectures",
        "",
        "Written by `python benchmarks/zoo.py`: each network is captured, checked against its float self, cut into",
        "blocks that are run in order, quantized (6-bit weights, 8-bit activations, two steps a block), saved, loaded",
        "(bit for bit the same), exported to ONNX and executed. Weights are random and variants small: it says that",
        "the path holds for an architecture, not how accurate it gets. *dB* is the exported file, in ONNX Runtime,",
        "against the fake-quantized network (200: equal); *seconds* are processor seconds for everything.",
        "",
        f"{len(found)} of {len(ZOO)} architectures were run: {counts['ok']} hold, {counts['refused']} are refused "
        f"with a reason, {counts['failed']} fail; {seconds / 60:.0f} processor minutes in all.",
        "",
        "| network | from | nodes | blocks | layers quantized | float, and why | dB | seconds | result |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for name in ZOO:
        if name in found:
            text.append(_row(name, found[name]))
    return "\n".join(text) + "\n"


def _row(name: str, outcome: dict[str, Any]) -> str:
    layers = f"{outcome['quantized']} of {outcome['layers']}" if "layers" in outcome else ""
    why = "; ".join(f"{count} {reason}" for reason, count in outcome.get("float", {}).items())
    why = "; ".join(filter(None, [why, *outcome.get("notes", [])]))
    onnx = outcome.get("onnx")
    cells = [
        name, outcome.get("source", ""), outcome.get("nodes", ""), outcome.get("blocks", ""), layers, why,
        "" if onnx is None else f"{onnx:.0f}", f"{outcome['cpu']:.0f}" if "cpu" in outcome else "", outcome["result"],
    ]  # fmt: skip
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def main(arguments: list[str]) -> None:
    from architectures import ZOO

    if arguments[:1] == ["--one"]:
        import torch

        torch.set_num_threads(1)
        one(arguments[1])
        return
    jobs = 1
    if arguments[:1] == ["--jobs"]:
        jobs, arguments = int(arguments[1]), arguments[2:]
    if arguments == ["--failed"]:
        names = [name for name, outcome in results().items() if outcome["result"].startswith("failed")]
    elif arguments == ["--table"]:
        names = []
    else:
        names = arguments or [name for name in ZOO if name not in results()]
    unknown = [name for name in names if name not in ZOO]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; choose from {', '.join(ZOO)}")
    run(names, jobs)
    TABLE.write_text(table())


if __name__ == "__main__":
    main(sys.argv[1:])
