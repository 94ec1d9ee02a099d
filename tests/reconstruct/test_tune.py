"""End-to-end tuning: what it learns, what it leaves alone, when it is kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from brecq.checkpoint.resume import RunState
from brecq.progress import Progress
from brecq.quant.fake_quant import Mode, set_mode
from brecq.reconstruct import tune
from brecq.reconstruct.initialize.shared import shared_quantizers
from brecq.reconstruct.passes import END_TO_END


class Killed(Exception):
    pass


class KilledWhileTuning(Progress):
    def start(self, blocks, steps: int, later: int = 0) -> None:
        if list(blocks) == [END_TO_END]:
            raise Killed


def state(folder: Path, resume: bool = False) -> RunState:
    return RunState(folder, "run", resume=resume)


@pytest.fixture(scope="module")
def blocks(lab):
    return lab.run()


@pytest.fixture(scope="module")
def tuned(lab):
    return lab.run(tuning=5.0)


def plain(lab, **changes):
    """Steps and biases are tuned, codes are not."""
    return lab.run(**{"tuning": 5.0, "tune_codes_lr": 0.0, "tune_features": 0.0, **changes})


def cycles(monkeypatch: pytest.MonkeyPatch, *factors: float, codes: bool = False) -> None:
    found = [tune.Cycle(1 / len(factors), factor, codes) for factor in factors]
    monkeypatch.setattr(tune, "CYCLES", tuple(found))


def error(run, inputs: torch.Tensor) -> float:
    """Relative squared error of the network's output."""
    with torch.no_grad():
        set_mode(run.graph, Mode.FLOAT)
        target = run.graph(inputs)
        set_mode(run.graph, Mode.HARD)
        output = run.graph(inputs)
    return ((output - target).square().sum() / target.square().sum()).item()


def test_it_lowers_the_error_of_the_network(lab, blocks, tuned) -> None:
    report = tuned.reports[-1]
    assert (report.name, report.stage, report.steps, report.layers) == (END_TO_END, "tuning", 60, ())
    assert report.error_after < report.error_before
    (inputs,) = lab.inputs()
    assert error(tuned, inputs) < error(blocks, inputs)


def test_steps_that_blocks_share_are_learned_here(lab) -> None:
    """No single block may decide on the step of tensors that a concatenation joins; the whole network may."""
    blocks, tuned = (lab.run(name="UNet", steps=4, tuning=tuning) for tuning in (0.0, 10.0))
    assert tuned.reports[-1].error_after < tuned.reports[-1].error_before
    names = {module: name for name, module in tuned.graph.named_modules()}
    shared = [names[module] for module in shared_quantizers(tuned.network)]
    assert len(shared) == 2
    before, after = blocks.learned(), tuned.learned()
    assert all(not torch.equal(before[f"{name}.scale"], after[f"{name}.scale"]) for name in shared)


def test_codes_without_a_rate_stay_and_steps_and_biases_change(lab, blocks) -> None:
    before, after = blocks.learned(), plain(lab).learned()
    for kind, same in (("codes", True), ("zero_point", True), ("scale", False), ("learned", False)):
        names = [name for name in after if name.endswith(kind)]
        assert names
        # a bias that no block changed for the better has no learned value before
        assert all((name in before and torch.equal(before[name], after[name])) is same for name in names), kind


def test_codes_move_with_a_rate_of_their_own(lab, blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    cycles(monkeypatch, 1.0, codes=True)
    moved = lab.run(tuning=5.0, tune_codes_lr=0.1)
    codes = [name for name in moved.learned() if name.endswith("codes")]
    assert any(not torch.equal(moved.learned()[name], blocks.learned()[name]) for name in codes)
    assert moved.reports[-1].error_after < moved.reports[-1].error_before / 2


def test_a_rate_of_codes_that_would_throw_the_network_off_is_lowered(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    cycles(monkeypatch, 1.0, codes=True)
    far = {"tuning": 5.0, "tune_codes_lr": 3.0}
    lowered = lab.run(**far).reports[-1].error_after
    monkeypatch.setattr(tune, "TRUST_CODES", math.inf)
    assert lowered < lab.run(**far).reports[-1].error_after


def test_features_are_looked_at_and_chosen_by(lab) -> None:
    features = plain(lab, tune_features=1.0)
    assert not lab.same(features, plain(lab))
    assert features.reports[-1].error_after < features.reports[-1].error_before


def test_a_resumed_run_that_is_to_tune_otherwise_tunes_again(lab, tmp_path: Path) -> None:
    lab.run(tuning=1.0, state=state(tmp_path))
    again = lab.run(tuning=1.0, tune_codes_lr=0.1, state=state(tmp_path, resume=True))
    assert [report.resumed for report in again.reports] == [True] * (len(again.reports) - 1) + [False]


def test_weights_that_stayed_rounded_to_nearest_keep_those_codes(lab) -> None:
    nearest, after = lab.run(method="rtn").learned(), plain(lab, rounding_lr=0.0)
    assert after.reports[-1].error_after < after.reports[-1].error_before
    codes = [name for name in nearest if name.endswith("codes")]
    assert all(torch.equal(nearest[name], after.learned()[name]) for name in codes)


@pytest.mark.parametrize("bias_lr", [0.01, 0.0])
def test_what_does_not_help_is_not_kept(lab, bias_lr: float, monkeypatch: pytest.MonkeyPatch) -> None:
    cycles(monkeypatch, 5000.0)
    run = lab.run(tuning=0.5, bias_lr=bias_lr)
    assert run.reports[-1].error_after == run.reports[-1].error_before
    assert lab.same(run, lab.run(bias_lr=bias_lr))


def test_a_cycle_that_does_harm_is_undone_and_the_next_helps(lab, blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    cycles(monkeypatch, 5000.0, 1.0)
    helped = lab.run(tuning=5.0).reports[-1]
    assert helped.error_after < helped.error_before
    cycles(monkeypatch, 5000.0)
    assert lab.same(lab.run(tuning=5.0), blocks)


def test_a_rate_that_would_throw_the_network_off_is_lowered(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = lab.run(tuning=5.0, tune_lr=0.5).reports[-1].error_after
    monkeypatch.setattr(tune, "TRUST", math.inf)
    assert lowered < lab.run(tuning=5.0, tune_lr=0.5).reports[-1].error_after


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [tune.schedule(step, 200) for step in range(200)]
    assert rates.index(max(rates)) == 19
    assert rates[:20] == sorted(rates[:20])
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert rates[-1] < 1e-3 < rates[0]
    assert [tune.schedule(0, 1), tune.schedule(0, 2)] == [1.0, 1.0]


def test_the_learning_rate_matters(lab, tuned) -> None:
    assert not lab.same(lab.run(tuning=5.0, tune_lr=1e-3), tuned)


def test_the_same_seed_gives_the_same_result(lab, tuned) -> None:
    assert lab.same(lab.run(tuning=5.0), tuned)


def test_the_steps_of_a_cycle_that_learns_nothing_go_to_the_others() -> None:
    steps, codes = tune.CYCLES
    assert steps.rates({"steps": 0.01, "codes": 0.03}) == {"steps": 0.01}
    assert codes.rates({"steps": 0.01, "codes": 0.03}) == {"steps": 0.002, "codes": 0.03}
    assert steps.rates({"codes": 0.03}) == {}


def test_without_any_rate_there_is_no_tuning(lab, blocks) -> None:
    idle = lab.run(tuning=5.0, tune_lr=0.0, tune_codes_lr=0.0)
    assert "tuning" not in {report.stage for report in idle.reports}
    assert lab.same(idle, blocks)


def test_all_steps_are_made_where_codes_alone_are_learned(lab) -> None:
    told: list[int] = []

    class Listener(Progress):
        def step(self, step: int, loss: float, error: float | None = None) -> None:
            told.append(step)

    lab.run(tuning=5.0, tune_lr=0.0, progress=Listener())
    assert told[-1] == 60


def test_networks_of_several_outputs_and_few_samples(lab) -> None:
    for name, samples in (("FPN", 24), ("ResNet", 1)):
        report = lab.run(name=name, samples=samples, tuning=4.0, steps=2).reports[-1]
        assert report.error_after <= report.error_before


def test_weights_only(lab) -> None:
    report = lab.run(activations=32, tuning=2.5, compensate=False).reports[-1]
    assert report.error_after < report.error_before


def test_rounding_to_nearest_is_not_tuned(lab) -> None:
    assert all(report.stage == "rtn" for report in lab.run(method="rtn", tuning=2.5).reports)


def test_a_run_killed_while_tuning_resumes_there(lab, tuned, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        lab.run(tuning=5.0, state=state(tmp_path), progress=KilledWhileTuning())
    resumed = lab.run(tuning=5.0, state=state(tmp_path, resume=True))
    assert [report.resumed for report in resumed.reports] == [True] * (len(resumed.reports) - 1) + [False]
    assert lab.same(resumed, tuned)
    again = lab.run(tuning=5.0, state=state(tmp_path, resume=True))
    assert all(report.resumed for report in again.reports)
    assert lab.same(again, tuned)
