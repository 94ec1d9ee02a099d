"""Fake-quantizers: modes, learned state, and what they hand to PT2E's convert."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from brecq.errors import DataError
from brecq.quant import affine
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant import (
    ActivationFakeQuantize,
    BaseFakeQuantize,
    BiasFakeQuantize,
    Mode,
    Start,
    WeightFakeQuantize,
    set_mode,
)
from brecq.quant.learners import AdaRound, BiasShift, Learner, StepSize, TunedScale

AFFINE, SYMMETRIC = torch.per_channel_affine, torch.per_channel_symmetric


def weight(w: Tensor, bits: int = 4, qscheme: torch.qscheme = AFFINE, axis: int = 0) -> WeightFakeQuantize:
    module = WeightFakeQuantize(IntRange.weights(bits, qscheme is SYMMETRIC), qscheme, axis)
    module.initialize(w, 2.4, 50)
    return module


def activation(x: Tensor, bits: int = 4, qscheme: torch.qscheme = torch.per_tensor_affine) -> ActivationFakeQuantize:
    module = ActivationFakeQuantize(IntRange.activations(bits), qscheme)
    module.mode = Mode.OBSERVE
    module(x)
    module.initialize(2.4, 50)
    return module


def learn(module: BaseFakeQuantize, learner: Learner) -> Learner:
    module.learn(learner)
    return learner


def hard(module: nn.Module) -> nn.Module:
    set_mode(module, Mode.HARD)
    return module


@pytest.mark.parametrize("mode", [Mode.FLOAT, Mode.OBSERVE])
def test_values_pass_until_quantization_is_on(mode: Mode) -> None:
    w, x = torch.randn(4, 6), torch.randn(8, 6)
    for module, value in ((weight(w), w), (activation(x), x)):
        module.mode = mode
        assert module(value) is value
        assert not module.active
    disabled = WeightFakeQuantize(IntRange.weights(4, False), AFFINE, 0, enabled=False)
    assert hard(disabled)(w) is w
    assert disabled.describe() == "float"


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("bits", "qscheme"), [(8, SYMMETRIC), (4, AFFINE), (2, AFFINE), (3, SYMMETRIC)])
def test_weights_round_to_nearest_on_their_grid(bits: int, qscheme: torch.qscheme, axis: int) -> None:
    w = torch.randn(6, 5, 3, 3)
    module = hard(weight(w, bits, qscheme, axis))
    scale, zero_point = module.calculate_qparams()
    assert scale.shape == zero_point.shape == (w.shape[axis],)
    if qscheme is SYMMETRIC:
        assert not zero_point.any()
    expected = torch.fake_quantize_per_channel_affine(
        w, scale, zero_point.int(), axis, module.quant_min, module.quant_max
    )
    # torch multiplies by 1 / scale: at ties of x / s the two may differ by one step
    assert ((module(w) - expected).abs() > 1e-6).float().mean() < 0.01
    shape = [1] * 4
    shape[axis] = -1
    codes = module.integers(w)
    assert codes.dtype == torch.int8
    assert codes.min() >= module.quant_min
    assert codes.max() <= module.quant_max
    assert torch.equal((codes - zero_point.float().view(shape)) * scale.view(shape), module(w))


def test_a_weight_quantized_as_a_whole() -> None:
    w = torch.randn(6, 5)
    module = hard(weight(w, 4, torch.per_tensor_affine))
    assert module.calculate_qparams()[0].shape == (1,)
    assert (module(w) - w).abs().max() <= module.scale.item()


def test_learning_starts_at_the_float_weight_and_ends_at_the_learned_codes() -> None:
    w = torch.randn(4, 8)
    module = weight(w)
    nearest, untouched = hard(module)(w), module.state()
    nearest_codes = module.integers(w)
    v = learn(module, AdaRound(w, module.grid)).v
    assert v.shape == w.shape
    scale = module.scale.view(-1, 1)
    inside = (nearest_codes > module.quant_min) & (nearest_codes < module.quant_max)  # there is no code beyond these
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(module(w)[inside], w[inside], rtol=1e-4, atol=1e-5)  # h(v) is the fractional part
    assert torch.equal(module.integers(w), nearest_codes)  # nothing learned yet: rounding to nearest

    module(w).square().sum().backward()
    assert v.grad is not None
    assert v.grad.abs().sum() > 0
    with torch.no_grad():
        v.copy_(-v)
    flipped = module.state()
    assert not torch.equal(flipped["codes"], nearest_codes)
    assert (flipped["codes"].int() - nearest_codes.int()).abs().max() == 1
    module.restore(flipped)
    assert module.learner is None
    assert not list(module.parameters())
    assert torch.equal(module.integers(w), flipped["codes"])
    assert torch.equal(module(w), affine.dequantize(flipped["codes"], scale, module.zero_point.view(-1, 1)))
    assert not torch.equal(module(w), nearest)
    module.restore(untouched)
    assert torch.equal(module(w), nearest)


def test_in_hard_mode_a_learner_gives_what_it_would_leave() -> None:
    """And learning goes on afterwards from where it was."""
    w, x, bias = torch.randn(4, 6), torch.randn(32, 6), torch.randn(4)
    weights, inputs = weight(w), activation(x, 4)
    biases = BiasFakeQuantize(inputs, weights)
    for module, learner, value in (
        (weights, AdaRound(w, weights.grid), w),
        (inputs, StepSize(inputs.grid, drop=0.5), x),
        (biases, BiasShift(biases.value(bias), torch.tensor(0.5)), bias),
    ):
        module.learn(learner)
        with torch.no_grad():
            next(learner.parameters()).add_(0.3)
        soft = module(value).detach()
        module.mode = Mode.HARD
        looked = module(value).detach()
        module.mode = Mode.LEARN
        assert torch.equal(module(value).detach(), soft)
        settled = module.state()
        module.restore(settled)
        assert torch.equal(module(value), looked)
        assert module.state().keys() == settled.keys()


def test_learners_have_no_parameters_but_their_own() -> None:
    """What they start from belongs to the float network: optimizing it would change the model."""
    w, bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))
    module = weight(w)
    grid = module.grid
    learners = [
        AdaRound(w, grid),
        TunedScale(module.integers(w), grid),
        BiasShift(bias, bias.new_tensor(0.5)),
        StepSize(grid),
    ]
    for learner in learners:
        (own,) = learner.parameters()
        assert own is not w
        assert own is not bias
        assert learner.groups() == {learner.rate: [own]}


def test_learning_can_start_from_another_weight_and_its_codes() -> None:
    w = torch.randn(4, 8)
    module = hard(weight(w))
    compensated = w + 0.4 * module.scale.view(-1, 1)
    codes = (module.integers(w).int() + 1).clamp(module.quant_min, module.quant_max).to(torch.int8)
    module.start = Start(compensated, codes)
    learner = AdaRound(module.start.weight, module.grid, module.start.codes)
    assert learner.warm
    module.learn(learner)
    reachable = (codes.float() - affine_steps(compensated, module)).abs() < 1
    assert torch.equal(module.integers(w)[reachable], codes[reachable])
    module.restore(module.state())
    assert module.start is None


def affine_steps(w: Tensor, module: WeightFakeQuantize) -> Tensor:
    """The weight in steps, clipped to the codes, before rounding."""
    steps = w / module.scale.view(-1, 1) + module.zero_point.view(-1, 1)
    return steps.clamp(module.quant_min, module.quant_max)


def test_activations_are_initialized_on_what_was_observed() -> None:
    torch.manual_seed(0)
    x = torch.rand(1000) * 3
    module = hard(activation(x, 8))
    assert module.zero_point == 0
    assert 2.5 / 255 < module.scale.item() < 3.1 / 255
    assert (module(x) - x).abs().max() <= 0.6  # no more than a little is clipped
    assert module.observer.parts == {}  # forgotten
    assert torch.equal(module(x), affine.fake_quantize(x, module.scale, module.zero_point, module.range))


def test_the_observed_range_is_that_of_all_batches_and_memory_is_bounded() -> None:
    module = ActivationFakeQuantize(IntRange.activations(8), torch.per_tensor_affine)
    module.mode = Mode.OBSERVE
    for i in range(40):
        module(torch.full((10_000,), float(i)))
        held = [value for part in module.observer.parts.values() for value in (part.drawn, part.ends)]
        assert sum(value.numel() for value in held) <= 1 << 18
    values = torch.cat(held).unique()
    assert values.min() <= 8  # early batches are still represented
    assert values.max() == 39
    module.initialize(2.4, 100)
    assert module.scale.item() * 255 > 30


def test_an_activation_never_observed_is_an_error() -> None:
    module = ActivationFakeQuantize(IntRange.activations(4), torch.per_tensor_affine)
    with pytest.raises(DataError, match="none were observed"):
        module.initialize(2.4, 10)


@pytest.mark.parametrize("log_space", [True, False])
def test_step_sizes_are_learned_from_where_they_are(log_space: bool) -> None:
    x = torch.randn(64, 8)
    module = activation(x)
    start = module.scale.clone()
    before = hard(module)(x)
    theta = learn(module, StepSize(module.grid, log_space=log_space)).theta
    torch.testing.assert_close(module.grid.scale, start)
    torch.testing.assert_close(module(x), before)
    (module(x) - x).square().mean().backward()
    assert theta.grad is not None
    assert theta.grad != 0
    with torch.no_grad():
        theta.add_(-100.0)
    assert module.grid.scale > 0  # whatever the optimizer does
    module.restore({**module.state(), "scale": start * 2})
    assert module.learner is None
    assert module.calculate_qparams()[0] == start * 2


def test_dropping_happens_while_learning_only() -> None:
    x = torch.randn(1000)
    module = activation(x, 2)
    full = hard(module)(x)
    learner = learn(module, StepSize(module.grid, drop=0.5))
    learner.seed = 1
    mixed = module(x).detach()
    kept = mixed == x
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(mixed[~kept], full[~kept])
    learner.seed = 2
    assert not torch.equal(module(x).detach(), mixed)
    module.restore(module.state())
    assert torch.equal(module(x), full)


def test_biases_are_multiples_of_the_product_of_the_steps() -> None:
    w, x, bias = torch.randn(4, 6), torch.randn(32, 6), torch.randn(4)
    inputs, weights = activation(x, 8), weight(w)
    module = BiasFakeQuantize(inputs, weights)
    assert list(module.children()) == []  # its sources belong to the graph
    assert module(bias) is bias
    set_mode(module, Mode.HARD)
    set_mode(inputs, Mode.HARD)
    assert module(bias) is bias  # the weight is still float
    set_mode(weights, Mode.HARD)
    rounded = module(bias)
    step = inputs.scale * weights.scale
    torch.testing.assert_close(rounded / step, (rounded / step).round(), rtol=0, atol=1e-2)
    assert ((rounded - bias).abs() <= step / 2 * 1.001).all()
    scale, zero_point = module.calculate_qparams()
    assert torch.equal(scale, step)
    assert not zero_point.any()
    theta = learn(inputs, StepSize(inputs.grid)).theta
    with torch.no_grad():
        theta.add_(3.0)
    assert not torch.equal(module(bias), rounded)  # it follows the step that is being learned


@pytest.mark.parametrize("qscheme", [AFFINE, SYMMETRIC, torch.per_tensor_symmetric])
@pytest.mark.parametrize("dead", [0.0, 1e-30, 1e-12, 1e-6])
def test_weight_steps_are_raised_until_every_bias_has_its_code(dead: float, qscheme: torch.qscheme) -> None:
    w, x, bias = torch.randn(6, 20), torch.rand(32, 20), torch.tensor([1.0, -20.0, 0.1, 0.0, 3e4, -1e-9])
    w[::2] *= dead
    inputs, weights = hard(activation(x, 8)), hard(weight(w, 8, qscheme))
    module = hard(BiasFakeQuantize(inputs, weights))
    fine = weights.scale.clone()
    module.make_room(bias)
    step = inputs.scale.double() * weights.scale.double()
    codes = module.integers(bias)
    assert codes.abs().max() < 2**30
    assert ((codes * step - bias.double()).abs() <= step * 0.500001).all()
    torch.testing.assert_close(module(bias), bias, rtol=1e-6, atol=step.max().item() / 2)
    if qscheme is not torch.per_tensor_symmetric:
        assert torch.equal(weights.scale[1::2], fine[1::2])  # the others keep their steps
    assert ((weights(w) - w).abs() <= weights.scale.view(-1, 1) * 1.5).all()
    raised = weights.scale.clone()
    module.make_room(bias)
    assert torch.equal(weights.scale, raised)


def test_room_is_made_again_for_smaller_input_steps_and_learned_codes_follow() -> None:
    w, bias = torch.randn(3, 50) * torch.tensor([[1.0], [1e-7], [1e-3]]), torch.tensor([0.5, 2.0, 1.0])
    inputs, weights = hard(activation(torch.rand(64), 8)), hard(weight(w, 8))
    module = hard(BiasFakeQuantize(inputs, weights))
    module.make_room(bias)
    weights.restore({**weights.state(), "codes": weights.integers(w)})
    before = weights(w)
    inputs.restore({**inputs.state(), "scale": inputs.scale / 1000})  # learning, or tuning, shrank it
    assert module.integers(bias)[1] == module.range.high  # saturated
    module.make_room(bias)
    assert module.integers(bias).abs().max() < 2**29
    assert ((weights(w) - before).abs() <= weights.scale.view(-1, 1) * 0.501).all()
    assert torch.equal(weights(w)[0], before[0])


def test_room_waits_for_steps_that_are_not_set() -> None:
    inputs = ActivationFakeQuantize(IntRange.activations(8), torch.per_tensor_affine)
    module = BiasFakeQuantize(inputs, weight(torch.zeros(2, 3)))
    module.make_room(torch.ones(2))
    BiasFakeQuantize(None, weight(torch.zeros(2, 3))).make_room(torch.ones(2))


def test_a_bias_is_learned_and_rounded() -> None:
    w, x, bias = torch.randn(4, 6), torch.randn(32, 6), torch.randn(4)
    inputs, weights = hard(activation(x, 8)), hard(weight(w))
    module = BiasFakeQuantize(inputs, weights)
    unit = torch.tensor(0.3)
    theta = learn(module, BiasShift(bias, unit)).theta
    start = module(bias)
    start.sum().backward()
    torch.testing.assert_close(theta.grad, unit.expand(4))  # straight through the rounding
    with torch.no_grad():
        theta.copy_(torch.tensor([1.0, 0.0, -1.0, 0.5]))
    torch.testing.assert_close(module.value(bias).detach(), bias + unit * theta.detach())
    module.restore(module.state())
    assert not list(module.parameters())
    step = inputs.scale * weights.scale
    torch.testing.assert_close(module(bias), ((bias + unit * theta.detach()) / step).round() * step)
    set_mode(module, Mode.FLOAT)
    assert module(bias) is bias
    module.restore({})
    torch.testing.assert_close(module(bias), start.detach())


def test_a_bias_behind_a_float_input_is_learned_and_stays_float() -> None:
    bias = torch.randn(4)
    module = BiasFakeQuantize(None, hard(weight(torch.randn(4, 6))))
    assert not module.enabled
    module.restore({"learned": bias + 1})
    assert torch.equal(module(bias), bias + 1)
    assert module.describe() == "float"


def test_tuning_learns_the_steps_of_fixed_codes() -> None:
    w = torch.randn(4, 6)
    module = hard(weight(w))
    before, codes = module(w), module.integers(w)
    theta = learn(module, TunedScale(codes, module.grid)).theta
    assert torch.equal(module(w), before)
    with torch.no_grad():
        theta.add_(1.0)
    assert torch.equal(module.integers(w), codes)  # rounding anew with these steps would give others
    torch.testing.assert_close(module(w), before * torch.e)
    module(w).sum().backward()
    torch.testing.assert_close(theta.grad, module(w).detach().sum(1))
    module.restore(module.state())
    assert torch.equal(module.integers(w), codes)
    torch.testing.assert_close(module(w), before * torch.e)
    assert not list(module.parameters())


def test_modes_of_activations_may_differ() -> None:
    net = nn.ModuleList([weight(torch.randn(2, 2)), activation(torch.randn(4))])
    net.append(BiasFakeQuantize(net[1], net[0]))
    set_mode(net, Mode.HARD, activations=Mode.FLOAT)
    assert [module.mode for module in net] == [Mode.HARD, Mode.FLOAT, Mode.HARD]
    assert [module.active for module in net] == [True, False, False]


def test_descriptions() -> None:
    described = weight(torch.randn(2, 2)).describe(), activation(torch.randn(4), 8).describe()
    assert described[0].startswith("4 bit asymmetric")
    assert described[1].startswith("8 bit asymmetric")
    assert weight(torch.randn(2, 2), 8, SYMMETRIC).describe().startswith("8 bit symmetric")


def test_quantizing_before_initialization_is_refused() -> None:
    with pytest.raises(AssertionError, match="initialize was not called"):
        hard(WeightFakeQuantize(IntRange.weights(4, False), AFFINE, 0))(torch.randn(2, 2))
