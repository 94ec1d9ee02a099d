"""Reconstruction of single blocks: what is learned, what is kept, what options change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brecq.config import QuantConfig, Recipe
from brecq.pipeline import quantize
from brecq.quant.fake_quant import ActivationFakeQuantize, BiasFakeQuantize, Mode, WeightFakeQuantize
from brecq.ranks import Part
from brecq.reconstruct import memory
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.initialize import initialize
from brecq.reconstruct.learnables import learnables
from brecq.reconstruct.optimize import Reconstruction
from brecq.reconstruct.run import seed_of
from brecq.reconstruct.sampler import Sampler, hold_out, measured_on
from brecq.reconstruct.site import Site
from brecq.reconstruct.streams import Streams

CPU = torch.device("cpu")
VARIANTS = {
    "qdrop off": {"qdrop": 0.0},
    "fisher": {"loss": "fisher"},
    "raw loss": {"normalize_loss": False, "rounding_penalty": 0.01},
    "linear steps": {"step_space": "linear", "step_lr": 1e-3},
    "no penalty": {"rounding_penalty": 0.0},
    "other learning rate": {"rounding_lr": 0.1},
    "two stages": {"joint": False, "activation_steps": 12},
    "other rate of biases": {"bias_lr": 0.1},
    "other range": {"range_norm": 2.0, "range_candidates": 30},
    "nothing held out": {"held_out": 0.0},
}


@pytest.fixture(scope="module")
def fast(lab):
    return lab.run()


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_ends_worse_than_rounding_to_nearest(lab, variant: str) -> None:
    assert all(report.error_after <= report.error_before for report in lab.run(**VARIANTS[variant]).reports)


def test_given_labels_change_the_fisher_result(lab) -> None:
    labels = torch.randint(10, (96,))
    sampled = lab.run(loss="fisher", labels=labels)
    given = lab.run(loss="fisher", fisher_labels="given", labels=labels)
    assert not lab.same(sampled, given)
    assert lab.same(sampled, lab.run(loss="fisher"))  # labels that are not asked for are not used


@pytest.mark.parametrize("rounding_lr", [0.03, 30.0])
def test_keep_best_is_never_worse_than_rounding_to_nearest(lab, rounding_lr: float) -> None:
    run = lab.run(rounding_lr=rounding_lr, step_lr=rounding_lr)  # 30 destroys whatever it learns
    assert all(report.error_after <= report.error_before for report in run.reports)


def test_without_keep_best_the_last_state_is_kept(lab) -> None:
    run = lab.run(rounding_lr=30.0, step_lr=1.0, keep_best=False)
    assert any(report.error_after > report.error_before for report in run.reports)


def test_the_reported_error_is_that_of_the_finished_block(lab, fast) -> None:
    """It is measured on the samples that were held out."""
    held = hold_out(96, 0.125, seed_of(0, "held out"))
    cache = ActivationCache(CPU)
    streams = Streams(fast.network, lab.inputs(), cache)
    for block, report in zip(fast.network.blocks, fast.reports, strict=True):
        streams.advance("float", block)
        streams.advance("quantized", block)
        (target,) = streams.read("float", block.outputs, held)
        (output,) = streams.read("quantized", block.outputs, held)
        error = (output - target).double().square().sum() / target.double().square().sum()
        assert report.error_after == pytest.approx(error.item(), rel=1e-3)
        assert report.layers == block.layers


def test_more_steps_learn_more(lab) -> None:
    fast = lab.run(steps=4)
    longer = lab.run(steps=60)
    before = sum(report.error_before for report in longer.reports[1:-1])
    assert longer.reports[1].error_after < fast.reports[1].error_after
    assert sum(report.error_after for report in longer.reports[1:-1]) < before


def test_outputs_count_by_their_own_power(networks) -> None:
    """The boxes of a detector are learned alike, whatever the numbers that its class scores are given in."""
    inputs = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    recipe = Recipe.preset("fast").replace(steps=30, batch_size=16, range_candidates=20, tuning=0.0, qdrop=0.0)
    config = QuantConfig(weights=2, activations=8, granularity="net", first_last=None, recipe=recipe)
    boxes = []
    for scale in (1.0, 64.0):
        torch.manual_seed(0)
        result = quantize(networks.Scores(scale), inputs, config)
        (block,) = result.report.blocks
        assert block.error_after < block.error_before
        boxes.append((block.error_after, result.model(inputs)[0]))
    assert boxes[0][0] == pytest.approx(boxes[1][0], rel=1e-2)
    torch.testing.assert_close(boxes[0][1], boxes[1][1], rtol=1e-2, atol=1e-2)


def test_biases_are_on_the_int32_grid(fast) -> None:
    checked = 0
    for node in fast.graph.graph.nodes:
        if node.op != "call_module":
            continue
        module = fast.graph.get_submodule(node.target)
        if isinstance(module, BiasFakeQuantize):
            inputs, weight = module.sources
            bias = fast.graph
            for part in node.args[0].target.split("."):
                bias = getattr(bias, part)
            steps = module(bias).double() / (inputs.scale.double() * weight.scale.double())
            torch.testing.assert_close(steps, steps.round(), rtol=1e-5, atol=1e-3)
            checked += 1
    assert checked == 9


def test_codes_stay_beside_the_weight_unless_they_start_in_closed_form(lab, fast) -> None:
    nearest, learned, started = (run.learned() for run in (lab.run(method="rtn"), fast, lab.run(compensate=True)))
    weights = [name for name in nearest if name.endswith(".codes")]
    assert len(weights) == 9
    moved = [(learned[name].int() - nearest[name].int()).abs() for name in weights]
    assert max(int(difference.max()) for difference in moved) == 1
    assert max(int((started[name].int() - nearest[name].int()).abs().max()) for name in weights) > 1


def test_bfloat16_autocast_runs_and_learns(lab, fast) -> None:
    run = lab.run(autocast="bf16")
    assert not lab.same(run, fast)
    for report, reference in zip(run.reports, fast.reports, strict=True):
        assert report.error_after <= report.error_before
        assert report.error_before == pytest.approx(reference.error_before, rel=1)


def test_a_shared_weight_is_learned_once(lab) -> None:
    run = lab.run(name="Recurrent", granularity="layer")
    layers = [report.layers[0] for report in run.reports]
    assert layers == ["stem", "step", "step#2", "step#3", "head"]
    weights = [m for m in run.graph.modules() if isinstance(m, WeightFakeQuantize)]
    assert len(weights) == 3
    # what later blocks do does not change the shared weight: stop after the first use, and compare
    first, network = lab.network(lab.config(granularity="layer"), "Recurrent")
    done = set()
    owners = []
    for block in network.blocks:
        mine = learnables(block.module, done)
        owners.append(sorted(mine.weights))
        done |= {module for module, _ in mine.weights.values()}
    assert [len(names) for names in owners] == [1, 1, 0, 0, 1]
    assert first is network.graph


def test_a_block_with_nothing_to_learn_makes_no_steps(lab) -> None:
    run = lab.run(name="Recurrent", granularity="layer", activations=32, bias_lr=0.0)
    assert [report.steps for report in run.reports] == [12, 12, 0, 0, 12]
    skipped = run.reports[2]
    assert skipped.error_before == skipped.error_after


def test_everything_is_hard_afterwards(lab) -> None:
    config = lab.config()
    _, network = lab.network(config)
    streams = Streams(network, lab.inputs(), ActivationCache(CPU))
    block = network.blocks[0]
    streams.advance("float", block)
    mine = learnables(block.module, set())
    site = Site(block, mine, streams, config.recipe)
    initialize(site, "joint")
    calls: list[tuple[int, float, float | None]] = []
    learner = Reconstruction(site, "joint", 0, held=hold_out(96, 0.125, 0))
    outcome = learner.run(20, lambda *call: calls.append(call))
    assert outcome.steps == 20
    assert [step for step, _, _ in calls] == [10, 20]
    assert all(soft > 0 for _, soft, _ in calls)
    assert calls[-1][2] is not None
    for module in block.module.modules():
        if isinstance(module, WeightFakeQuantize | ActivationFakeQuantize):
            assert module.mode is Mode.HARD
            assert not list(module.parameters())


def test_batches_hold_every_sample_once_before_any_comes_again() -> None:
    sampler = Sampler(10, 5, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(sampler) for _ in range(4)])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()


@given(samples=st.integers(1, 2000), share=st.floats(0.001, 0.5), seed=st.integers(0, 5))
def test_some_samples_are_held_out_and_some_are_not(samples: int, share: float, seed: int) -> None:
    held = hold_out(samples, share, seed)
    assert held.tolist() == sorted(set(held.tolist()))
    assert (len(held) > 0) is (samples > 1)
    assert len(held) <= min(samples - 1, 128, max(1, round(share * samples)))
    assert torch.equal(measured_on(samples, held, seed), held if len(held) else torch.tensor([0]))
    sampler = Sampler(samples, 7, torch.Generator().manual_seed(seed), held)
    drawn = torch.cat([next(sampler) for _ in range(samples // 7 + 1)])
    assert not set(drawn.tolist()) & set(held.tolist())


def test_without_a_share_nothing_is_held_out() -> None:
    held = hold_out(300, 0.0, 0)
    assert len(held) == 0
    assert len(measured_on(300, held, 0)) == 128
    assert len(measured_on(50, held, 0)) == 50


def test_what_is_held_out_is_not_learned_from(lab) -> None:
    """Other inputs there lead to another error, not to other learning."""
    changes = {"keep_best": False, "normalize_loss": False, "range_samples": 8}
    (inputs,) = lab.inputs()
    held = hold_out(len(inputs), 0.125, seed_of(0, "held out"))
    held = held[held >= 8]  # ranges are initialized on the first eight
    learned_from = torch.tensor([i for i in range(8, len(inputs)) if i not in held])
    runs = []
    for changed in ([], held, learned_from):
        other = inputs.clone()
        other[changed] = inputs[changed].flip(-1) * 0.5
        runs.append(lab.run(inputs=(other,), **changes))
    assert runs[0].reports[0].error_after != runs[1].reports[0].error_after
    assert lab.same(runs[0], runs[1])
    assert not lab.same(runs[0], runs[2])


def test_out_of_memory_a_batch_is_learned_in_parts(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lab.run(qdrop=0.0)
    inputs, sizes = Reconstruction._inputs, []

    def scarce(self: Reconstruction, part: Part, step: int) -> list[torch.Tensor]:
        if len(part.places) > 5:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(part.places))
        return inputs(self, part, step)

    monkeypatch.setattr(Reconstruction, "_inputs", scarce)
    with pytest.warns(RuntimeWarning, match="with batches of 16 in 4 parts"):
        parts = lab.run(qdrop=0.0)
    assert set(sizes) == {2, 4}  # of two it was looked what they need
    assert "block 'fc' was learned with batches of 16 in 4 parts" in parts.cache.notes[-1]
    errors = [[report.error_after for report in run.reports] for run in (whole, parts)]
    assert errors[1][0] == pytest.approx(errors[0][0], rel=1e-3)  # the same gradients, added up in another order
    assert errors[1] == pytest.approx(errors[0], rel=0.2)  # which grows from block to block


def test_a_single_sample_that_is_too_large_is_an_error(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Reconstruction, "_inputs", full)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(RuntimeWarning, match="in 16 parts"):
        lab.run()


def test_a_batch_that_needs_much_memory_is_cut_beforehand(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lab.run(qdrop=0.0, steps=3)
    inputs, sizes = Reconstruction._inputs, []

    def counted(self: Reconstruction, part: Part, step: int) -> list[torch.Tensor]:
        sizes.append(len(part.places))
        return inputs(self, part, step)

    monkeypatch.setattr(Reconstruction, "_inputs", counted)
    monkeypatch.setattr(memory, "LARGEST_PART", 1)
    parts = lab.run(qdrop=0.0, steps=3)
    assert sizes[:26] == [4, 2, *[2] * 24]  # looked at, then three steps of sixteen samples
    assert parts.reports[0].error_after == pytest.approx(whole.reports[0].error_after, rel=1e-3)
