"""What is optimized: pixels, spectra, generators."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brecq.data.preprocessing import Preprocessing
from brecq.errors import ConfigError
from brecq.synthesis.config import DistillConfig
from brecq.synthesis.inputs import InputSpec, input_spec
from brecq.synthesis.latent import Generator, Pixels, Spectrum, make_latent
from brecq.synthesis.spectrum import spectrum_scale

LATENTS = ("spectrum", "pixels", "generator")


def make(spec: InputSpec, latent: str, count: int = 4, **changes: object) -> Pixels | Generator:
    start = "noise" if latent == "generator" else "leaves"
    config = DistillConfig(latent=latent, **{"coarse": 0.0, "start": start, **changes})  # type: ignore[arg-type]
    return make_latent(spec, count, config, torch.Generator().manual_seed(0))


def picture(preprocessing: Preprocessing) -> InputSpec:
    return input_spec(torch.nn.Identity(), preprocessing, None)


@settings(deadline=None, max_examples=40)
@given(sides=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_a_spectrum_and_its_inputs_are_two_views_of_one_thing(sides: list[int], seed: int) -> None:
    latent = make(InputSpec((2, *sides)), "spectrum")
    assert isinstance(latent, Spectrum)
    x = torch.randn(4, 2, *sides, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(latent._decode(latent._encode(x)), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", [(64,), (33, 40), (8, 9, 10)])
def test_coefficients_fall_as_one_over_f_at_unit_variance(sides: tuple[int, ...]) -> None:
    scale = spectrum_scale(sides)
    frequencies = torch.fft.rfftfreq(sides[-1])
    line = scale[(0,) * (len(sides) - 1)]  # frequencies along the last dimension only
    torch.testing.assert_close(line[1:] * frequencies[1:], (line[1] * frequencies[1]).expand(len(line) - 1))
    noise = make(InputSpec((3, *sides)), "spectrum", count=200)().detach()
    assert noise.var() == pytest.approx(1, abs=0.15)
    steps = noise.diff(dim=-1).square().mean()
    assert steps < 1.4  # of white noise 2


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_shapes_ranges_and_refinement(latent: str, size: tuple[int, int]) -> None:
    spec = picture(Preprocessing(mean=(0.5,), std=(0.5,), size=size, resize=None))
    found = make(spec, latent, coarse=0.5)
    assert found().shape == (4, 3, size[0] // 2, size[1] // 2)
    found.refine()
    found.project()
    assert found().shape == (4, 3, *size)
    assert found().abs().max() <= 1.0001  # black and white are ±1
    assert not torch.equal(found()[0], found()[1])


@pytest.mark.parametrize("latent", ["spectrum", "pixels"])
@pytest.mark.parametrize("start", ["leaves", "noise"])
def test_refinement_adds_what_was_learned_to_the_start(latent: str, start: str, preprocessing: Preprocessing) -> None:
    spec = picture(preprocessing)
    fine, coarse = (make(spec, latent, start=start, coarse=share) for share in (0.0, 0.5))
    coarse.refine()
    torch.testing.assert_close(coarse(), fine(), rtol=1e-3, atol=1e-4)  # nothing was learned
    darker = make(spec, latent, start=start, coarse=0.5)
    with torch.no_grad():
        darker.values.copy_(darker._encode(darker() - 0.1))
    darker.refine()
    torch.testing.assert_close(darker(), spec.clip(fine() - 0.1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("latent", LATENTS)
def test_gradients_reach_every_parameter(latent: str, preprocessing: Preprocessing) -> None:
    found = make(picture(preprocessing), latent)
    found().square().sum().backward()
    grouped = [value for group in found.groups() for value in group["params"]]
    assert {id(value) for value in grouped} == {id(value) for value in found.parameters()}
    assert all(value.grad is not None and value.grad.isfinite().all() for value in grouped)


def test_projection_clips_only_what_is_out_of_range(preprocessing: Preprocessing) -> None:
    spec = picture(preprocessing)
    for latent in ("spectrum", "pixels"):
        found = make(spec, latent)
        with torch.no_grad():
            found.values.mul_(5)
        outside = found().detach()
        found.project()
        torch.testing.assert_close(found(), spec.clip(outside), rtol=1e-3, atol=1e-4)


def test_a_vector_has_no_spectrum() -> None:
    assert type(make(InputSpec((7,)), "spectrum")) is Pixels


def test_the_generator_draws_pictures_only() -> None:
    with pytest.raises(ConfigError, match="latent is 'generator', but inputs of shape"):
        make(InputSpec((4, 32)), "generator")
