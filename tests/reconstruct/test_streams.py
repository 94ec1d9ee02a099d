"""Streams: each block runs once in float and once quantized, on what the blocks before it made."""

from __future__ import annotations

import pytest
import torch

from brecq.forward import BATCH
from brecq.quant.fake_quant import Mode, set_mode
from brecq.reconstruct import sizes
from brecq.reconstruct.cache import ActivationCache, Slot
from brecq.reconstruct.streams import Streams

CPU = torch.device("cpu")


def advance_all(lab, name: str, samples: int) -> tuple[Streams, list[set[Slot]]]:
    """Both streams through a network whose quantizers are set; the activations kept after each block."""
    run = lab.run(name=name, method="rtn", samples=32)
    cache = ActivationCache(CPU)
    streams = Streams(run.network, lab.inputs(name, samples), cache)
    kept = []
    for index, block in enumerate(run.network.blocks):
        streams.advance("float", block)
        streams.advance("quantized", block)
        streams.release(index)
        kept.append(set(cache._entries))
    return streams, kept


@pytest.mark.parametrize("name", ["ResNet", "UNet", "FPN", "TwoBranch"])
def test_streams_end_in_the_outputs_of_the_float_and_the_quantized_network(lab, name: str) -> None:
    samples = BATCH + 9  # two batches
    inputs = lab.inputs(name, samples)
    streams, _ = advance_all(lab, name, samples)
    graph, network = streams.network.graph, streams.network
    for stream, mode in (("float", Mode.FLOAT), ("quantized", Mode.HARD)):
        set_mode(graph, mode)
        with torch.no_grad():
            values = dict(zip(network.inputs, inputs, strict=True))
            for block in network.blocks:
                values.update(block(values))
            expected = [values[name] for name in network.blocks[-1].outputs]
        found = streams.read(stream, network.blocks[-1].outputs, slice(0, samples))
        # the streams are channels-last and in half precision: a rounding may tip now and then
        allowed = 1e-3 if stream == "float" else 2e-2
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= allowed * b.norm()
    assert not torch.equal(
        streams.read("float", network.blocks[-1].outputs, slice(0, 9))[0],
        streams.read("quantized", network.blocks[-1].outputs, slice(0, 9))[0],
    )
    assert streams.forwards == 2 * len(network.blocks)


def test_activations_are_forgotten_after_their_last_use(lab) -> None:
    streams, kept = advance_all(lab, "ResNet", 8)
    outputs = [block.outputs[0] for block in streams.network.blocks]
    # a chain: only what the next block reads is kept
    assert kept == [{Slot("float", name), Slot("quantized", name)} for name in outputs]


def test_skips_are_kept_until_they_are_read(lab) -> None:
    streams, kept = advance_all(lab, "UNet", 8)
    blocks = streams.network.blocks
    names = [block.name for block in blocks]
    skip = next(name for name in blocks[names.index("dec1")].inputs if name in blocks[0].outputs)
    waiting = [Slot("float", skip) in entries and Slot("quantized", skip) in entries for entries in kept]
    assert waiting == [i < names.index("dec1") for i in range(len(names))]


def test_weights_only(lab) -> None:
    run = lab.run(method="rtn", samples=32)
    streams = Streams(run.network, lab.inputs(samples=8), ActivationCache(CPU), Mode.FLOAT)
    streams.set_mode("quantized", run.network.blocks[0])
    modes = {type(m).__name__: m.mode for m in run.network.blocks[0].module.modules() if hasattr(m, "mode")}
    assert modes == {"WeightFakeQuantize": Mode.HARD, "ActivationFakeQuantize": Mode.FLOAT,
                     "BiasFakeQuantize": Mode.HARD}  # fmt: skip
    streams.set_mode("float", run.network.blocks[0])
    assert {m.mode for m in run.network.blocks[0].module.modules() if hasattr(m, "mode")} == {Mode.FLOAT}


def test_blocks_run_on_as_many_samples_as_there_is_room_for(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = lab.run(method="rtn", samples=32), []
    block = run.network.blocks[0]
    block.module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = []
    for room in (sizes.LARGEST_RUN, 10 * sizes.alive(block.module), 1):
        monkeypatch.setattr(sizes, "LARGEST_RUN", room)
        streams = Streams(run.network, lab.inputs(samples=70), ActivationCache(CPU))
        streams.advance("float", block)
        found.append((seen[:], streams.read("float", block.outputs, slice(0, 70))[0]))
        seen.clear()
    (most, some, fewest) = (batches for batches, _ in found)
    assert (most, some, set(fewest)) == ([35] * 2, [10] * 7, {2, 3})  # never one alone
    for _, values in found[1:]:
        torch.testing.assert_close(values, found[0][1], atol=1e-3, rtol=1e-3)
