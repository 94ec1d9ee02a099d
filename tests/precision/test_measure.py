"""The sensitivity table: its numbers against direct computation, its cost, its resumption."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from brecq.capture.export import capture
from brecq.config import QuantConfig
from brecq.errors import CheckpointError, ConfigError, DataError
from brecq.partition.blocks import extract
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.precision import problem as problems
from brecq.precision.layers import dissect
from brecq.precision.measure import measure_sensitivity
from brecq.precision.table import SensitivityTable
from brecq.progress import Progress
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant import Mode, WeightFakeQuantize
from brecq.ranks import Share
from brecq.reconstruct import fisher
from brecq.reconstruct.cache import ActivationCache, Slot
from brecq.reconstruct.run import seed_of


def rounded(weight: Tensor, bits: int, recipe) -> Tensor:
    """Rounded to nearest as a weight of 2 to 4 bits is."""
    quantizer = WeightFakeQuantize(IntRange.weights(bits, False), torch.per_channel_affine, 0)
    quantizer.initialize(weight, recipe.range_norm, recipe.range_candidates)
    quantizer.mode = Mode.HARD
    return quantizer(weight)


def test_losses_are_those_of_the_block_with_rounded_weights(bench) -> None:
    table = bench.table("ResNet", bits=(2, 4), cross="all")
    model, x = bench.model("ResNet"), bench.inputs("ResNet")
    graph = capture(model, (x[:2],))
    network = extract(graph, partition(graph))
    float_values = {network.inputs[0]: x}
    for block in network.blocks:
        float_values.update(block(float_values))
    block = next(block for block in network.blocks if block.name == "layer1.1")
    target = float_values[block.outputs[0]]
    cache = ActivationCache(torch.device("cpu"))
    fisher.sketch(network, (x,), cache, Share(len(x)), seed_of(0, "sensitivity", "draw", 0))
    vectors = cache.get(Slot("gradient", block.outputs[0]), slice(0, len(x)))

    def output(bits: dict[str, int]) -> Tensor:
        copied = copy.deepcopy(block.module)
        for node in copied.graph.nodes:
            name = str(node.target)
            layer = next(
                (layer for layer in bits if node.op == "get_attr" and layer in name and "weight" in name), None
            )
            if layer is not None:
                weight = (
                    copied.get_parameter(name) if name in dict(copied.named_parameters()) else copied.get_buffer(name)
                )
                weight.data = rounded(weight.detach(), bits[layer], bench.recipe)
        return copied(*(float_values[name] for name in block.inputs))[0]

    layers = block.layers
    settings = [{layer: bits} for layer in layers for bits in (2, 4)]
    settings += [dict(zip(layers, pair, strict=True)) for pair in itertools.product((2, 4), repeat=2)]
    for setting in settings:
        wanted = {f"{layer}/weight": bits for layer, bits in setting.items()}
        term = next(term for term in table.terms if dict(term.bits) == wanted)
        delta = output(setting) - target
        products = (vectors * delta).flatten(1)
        expected = {
            "relative": delta.square().sum() / target.square().sum(),
            "fisher": products.sum(1).square().mean() / 2,
            "fisher_diagonal": products.square().sum(1).mean() / 2,
        }
        assert term.losses == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-3)


def test_cross_terms_are_what_pairs_lose_beyond_the_single_ones(bench) -> None:
    table = bench.table("ResNet", bits=(2, 4), cross="all")
    crosses = {(first, second): value for first, second, value in table.crosses("fisher")}
    # three blocks of two, two and three weights, each with two widths: 4 + 4 + 3 · 4 pairs
    assert len(crosses) == 20
    first, second = ("layer1.0.conv1/weight", 2), ("layer1.0.conv2/weight", 4)
    single = table.diagonal("fisher")
    joint = next(t for t in table.terms if dict(t.bits) == dict([first, second])).losses["fisher"]
    assert crosses[first, second] == pytest.approx(joint - single[first] - single[second])
    lowest = bench.table("ResNet", bits=(2, 4))
    assert {bits for (_, a), (_, b), _ in lowest.crosses("fisher") for bits in (a, b)} == {2}
    assert not list(bench.table("ResNet", bits=(2, 4), cross="none").crosses("fisher"))


@pytest.mark.parametrize("cross", ["none", "lowest", "all"])
def test_the_cost_is_linear_in_blocks(bench, cross: str) -> None:
    table = bench.table("ResNet", bits=(2, 4), cross=cross)
    pairs = {"none": 0, "lowest": 5, "all": 20}[cross]
    blocks = 5  # the stem, three residual blocks, the head
    # the Fisher vectors, the float stream, seven weights at two widths, the pairs
    assert table.block_forwards == blocks + blocks + 7 * 2 + pairs
    assert len(table.terms) == 7 * 2 + pairs


def test_the_same_seed_gives_the_same_table_and_another_one_another(bench) -> None:
    first = bench.measure("ResNet", bits=(2, 4))
    assert first.terms == bench.table("ResNet", bits=(2, 4)).terms
    other = bench.measure("ResNet", config=bench.config(seed=1), bits=(2, 4))
    assert other.diagonal("relative") == first.diagonal("relative")
    assert other.diagonal("fisher") != first.diagonal("fisher")


def test_activations_can_be_searched(bench) -> None:
    table = bench.table("ResNet", bits=(2, 4), activation_bits=(3, 8), cross="none")
    single = table.diagonal("relative")
    inputs = [knob for knob in table.knobs if knob.kind == "input" and knob.free]
    assert [knob.name for knob in inputs][:2] == ["layer1.0.conv1/input", "layer1.0.conv2/input"]
    for knob in inputs:
        assert single[knob.name, 3] > 10 * single[knob.name, 8] > 0


def test_activations_are_searched_from_16_bits_down(bench) -> None:
    config = bench.config(activations=16)
    table = bench.table("ResNet", config=config, bits=(2, 4), activation_bits=(3, 8), cross="none")
    narrow = bench.table("ResNet", bits=(2, 4), activation_bits=(3, 8), cross="none")
    for name in ("layer1.0.conv1/input", "layer1.0.conv2/input"):
        first, second = (each.diagonal("relative") for each in (table, narrow))
        assert first[name, 8] == pytest.approx(second[name, 8], rel=0.2)
    fixed = {knob.name: knob.bits for knob in table.knobs if knob.kind == "input" and not knob.free}
    assert set(fixed.values()) == {(16,)}


def test_a_weight_that_blocks_share_counts_in_each(bench) -> None:
    table = bench.table("Recurrent", config=bench.config(granularity="layer"), bits=(2, 4), cross="none")
    terms = [term for term in table.terms if dict(term.bits) == {"step/weight": 2}]
    assert [term.block for term in terms] == ["step", "step#2", "step#3"]
    assert table.diagonal("fisher")["step/weight", 2] == pytest.approx(sum(term.losses["fisher"] for term in terms))
    assert [bool(layer.weight_bytes) for layer in table.layers] == [False, True, False, False, False]


def test_learning_lowers_the_losses_of_whole_blocks_and_its_codes_are_kept(bench) -> None:
    config = QuantConfig(recipe=bench.recipe.replace(steps=60))
    fast = bench.table("ResNet", bits=(2, 4), cross="all")
    learned = bench.measure("ResNet", config=config, bits=(2, 4), cross="all", quality="reconstructed")
    for block in ("layer1.0", "layer1.1"):
        pair = {f"{block}.conv1/weight": 2, f"{block}.conv2/weight": 2}
        before, after = (next(t for t in table.terms if dict(t.bits) == pair) for table in (fast, learned))
        assert after.losses["relative"] < 0.8 * before.losses["relative"]
    assert sorted(learned.codes)[:2] == ["layer1.0.conv1/weight@2", "layer1.0.conv1/weight@4"]
    codes = learned.codes["layer1.0.conv1/weight@2"]
    assert codes.dtype is torch.int8
    assert -2 <= int(codes.min()) <= int(codes.max()) <= 1
    assert not fast.codes


def test_a_table_survives_saving(bench, tmp_path: Path) -> None:
    table = bench.measure("ResNet", bits=(2, 4), quality="reconstructed")
    loaded = SensitivityTable.load(table.save(tmp_path / "search"))
    assert loaded == table
    assert loaded.codes.keys() == table.codes.keys()
    assert all(torch.equal(loaded.codes[key], table.codes[key]) for key in table.codes)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "damaged"), ("[]", "damaged"), ('{"version": 9}', "version 9"), (None, "is missing")]
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "sensitivity.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        SensitivityTable.load(tmp_path)


class Break(Progress):
    """Breaks off after so many blocks."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks
        self.resumed: list[str] = []

    def block_done(self, report) -> None:
        self.resumed += [report.name] if report.resumed else []
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("quality", ["fast", "reconstructed"])
def test_an_interrupted_measurement_goes_on_where_it_was(bench, tmp_path: Path, quality: str) -> None:
    whole = bench.measure("ResNet", bits=(2, 4), quality=quality)
    with pytest.raises(KeyboardInterrupt):
        bench.measure("ResNet", bits=(2, 4), quality=quality, run_dir=tmp_path, progress=Break(3))
    with pytest.raises(CheckpointError, match="different config"):
        bench.measure("ResNet", bits=(2, 8), quality=quality, run_dir=tmp_path, resume=True)
    progress = Break(99)
    table = bench.measure("ResNet", bits=(2, 4), quality=quality, run_dir=tmp_path, resume=True, progress=progress)
    assert progress.resumed == ["conv1", "layer1.0", "layer1.1"]
    assert table.terms == whole.terms
    assert table.layers == whole.layers
    assert all(torch.equal(table.codes[key], whole.codes[key]) for key in whole.codes)
    table.save(tmp_path)
    assert not (tmp_path / "blocks").exists()


def test_the_check_sees_sizes_before_anything_is_measured(bench) -> None:
    whole = bench.table("ResNet", bits=(2, 4))

    class Enough(Exception):
        pass

    def check(table: SensitivityTable) -> None:
        assert not table.terms
        assert table.other_bytes == whole.other_bytes
        assert [layer.weight_bytes for layer in table.layers] == [layer.weight_bytes for layer in whole.layers]
        raise Enough

    with pytest.raises(Enough):
        bench.measure("ResNet", bits=(2, 4), check=check)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": ()}, "bits is empty"),
        ({"bits": (2, 9)}, "bits is 9"),
        ({"bits": (2, 32)}, "holds 32, floating point"),
        ({"activation_bits": (1, 8)}, "activation_bits is 1"),
        ({"quality": "best"}, "quality is 'best'; choose one of fast, reconstructed"),
        ({"cross": "some"}, "cross is 'some'"),
        ({"draws": 0}, "draws is 0"),
        ({"resume": True}, "resume=True needs run_dir"),
        ({"config": QuantConfig(32, 8)}, "weights is 32 bits"),
        ({"config": QuantConfig(4, 32), "activation_bits": (4, 8)}, "activations is 32 bits, but"),
        ({"bits": (4,)}, "nothing to search"),
    ],
)
def test_what_cannot_be_measured(bench, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench.measure("ResNet", **options)


class Regressor(torch.nn.Module):
    """Two outputs, the second a thousand times the first, after a layer that feeds it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(*[torch.nn.Linear(6, 6) for _ in range(2)])
        self.small, self.large = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.body(x))
        return {"small": self.small(x), "large": 1000 * self.large(x)}


def test_outputs_that_are_no_scores_count_by_their_own_power() -> None:
    torch.manual_seed(1)
    model = Regressor().eval()
    x = torch.randn(256, 6)
    table = measure_sensitivity(model, x, QuantConfig(first_last=None), bits=(2, 8), cross="none", draws=8)
    alone = {(*term.bits.items(),): term.losses["fisher"] for term in table.terms}
    small, large = (alone[((f"{name}/weight", 2),)] for name in ("small", "large"))
    assert 0.1 < small / large < 10  # squared errors alone would differ by a million
    forced = QuantConfig(first_last=None, outputs="scores")
    with pytest.raises(DataError, match="outputs='values' weighs any outputs"):
        measure_sensitivity(model, x, forced, bits=(2, 8), cross="none")


def test_prepared_networks_have_the_bits_of_the_knobs(bench) -> None:
    """What a table calls an allocation is what placement makes of it."""
    for name in ("ResNet", "ConcatNet", "UNet"):
        table = bench.table(name, bits=(2, 4), activation_bits=(4, 8), cross="none")
        problem = problems.build(table, [], None, "fisher")
        choices = np.array([np.random.default_rng(1).integers(len(knob.bits)) for knob in problem.knobs])
        allocation = problems.allocation(problem, choices, table, "random", "fisher", "")
        config = allocation.apply(bench.config())
        quantizer = BrecqQuantizer(config)
        prepared = prepare(capture(bench.model(name), (bench.inputs(name)[:2],)), quantizer)
        found = dissect(prepared, partition(prepared), quantizer.placement, (2, 4), None)
        expected = {knob.name: knob.bits[choice] for knob, choice in zip(problem.knobs, choices, strict=True)}
        assert {knob.name: knob.bits[0] for knob in found.knobs} == expected


def test_codes_are_learned_by_the_loss_that_the_recipe_names(bench) -> None:
    plain, weighted = (
        bench.measure(
            "ResNet", config=QuantConfig(4, 8, recipe=bench.recipe.replace(loss=loss)), bits=(2, 4),
            quality="reconstructed",
        )
        for loss in ("plain", "fisher")
    )  # fmt: skip
    shared = plain.codes.keys() & weighted.codes.keys()  # without blocks that are best as they were
    assert any(not torch.equal(plain.codes[name], weighted.codes[name]) for name in shared)
