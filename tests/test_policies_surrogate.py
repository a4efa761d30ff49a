"""The Gaussian process of the policies, held to BoTorch, to finite differences and to what it must recover."""

import pytest
import torch
from botorch.models import SingleTaskGP
from gpytorch.kernels import MaternKernel, ScaleKernel

from stimopt.montage import Contact, monopolar
from stimopt.policies.improvement import botorch_model, log_noisy_improvement
from stimopt.policies.surrogate import (
    _negative_log_posterior,
    _pooled,
    _prior,
    axis_of_feature,
    columns_of,
    fit_surrogate,
)
from stimopt.space import Parameter, StimulationSpace
from stimopt.stimulus import table_stimulus
from stimopt.tensors import generator

MONTAGE = monopolar([Contact("A1")], "test")


def table_space(*parameters: Parameter) -> StimulationSpace:
    names = [parameter.name for parameter in parameters]
    return StimulationSpace(parameters, table_stimulus(MONTAGE, torch.zeros(len(names), dtype=torch.float64), names))


PLANE = table_space(Parameter("x", "continuous", 0, 1), Parameter("y", "continuous", 0, 1))
MIXED = table_space(Parameter("x", "continuous", 0, 1), Parameter("kind", "categorical", choices=(0.0, 1.0, 2.0)))


def draw(space: StimulationSpace, count: int, seed: int = 0) -> torch.Tensor:
    return space.snap(torch.rand(count, space.dimension, generator=generator(seed), dtype=torch.float64))


def noise(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, generator=generator(seed), dtype=torch.float64)


def no_trend(count: int) -> torch.Tensor:
    return torch.zeros(count, 0, dtype=torch.float64)


@pytest.mark.parametrize("space", [PLANE, MIXED], ids=["plane", "mixed"])
def test_posterior_is_that_of_the_botorch_model(space):
    points, others = draw(space, 14), draw(space, 9, seed=2)
    trend, then = noise(14).unsqueeze(-1), noise(9).unsqueeze(-1)
    surrogate = fit_surrogate(space, points, trend, points.sum(-1) + 0.1 * noise(14))
    mean, sd = surrogate.posterior(others, then)
    posterior = botorch_model(surrogate).posterior(surrogate.columns(others, then))
    torch.testing.assert_close(mean, surrogate.offset + surrogate.scale * posterior.mean[:, 0], atol=1e-8, rtol=0)
    torch.testing.assert_close(sd, surrogate.scale * posterior.variance[:, 0].sqrt(), atol=1e-6, rtol=0)


def test_covariance_is_the_matern_of_gpytorch():
    surrogate = fit_surrogate(PLANE, draw(PLANE, 10), no_trend(10), noise(10))
    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2)).double()
    kernel.outputscale, kernel.base_kernel.lengthscale = surrogate.signal, surrogate.lengths
    columns = surrogate.columns(draw(PLANE, 6, seed=3), no_trend(6))
    expected = kernel(columns[:, :2]).to_dense() + 1.0  # the level's prior variance
    torch.testing.assert_close(surrogate.covariance(columns, columns), expected, atol=1e-9, rtol=0)


def test_two_names_are_equally_far_apart():
    points = torch.tensor([[0.5, 1 / 6], [0.5, 0.5], [0.5, 5 / 6]], dtype=torch.float64)
    columns = columns_of(MIXED, points, no_trend(3))[:, :4]
    assert torch.allclose(torch.cdist(columns, columns), 1 - torch.eye(3, dtype=torch.float64), atol=1e-7)


def pooled(space: StimulationSpace, points: torch.Tensor, scores: torch.Tensor):
    return _pooled(columns_of(space, points, no_trend(len(points))), scores, axis_of_feature(space))


def test_gradient_of_the_fit_agrees_with_finite_differences():
    points = draw(MIXED, 9).repeat(2, 1)
    data, (mean, spread) = pooled(MIXED, points, noise(18)), _prior(2)
    theta = mean + 0.3 * noise(4, seed=5)
    _, gradient = _negative_log_posterior(theta.unsqueeze(0), data, mean, spread)
    steps = 1e-5 * torch.eye(4, dtype=torch.float64)
    ahead, _ = _negative_log_posterior(theta + steps, data, mean, spread)
    behind, _ = _negative_log_posterior(theta - steps, data, mean, spread)
    torch.testing.assert_close(gradient[0], (ahead - behind) / 2e-5, atol=1e-7, rtol=1e-6)


def test_pooling_repetitions_loses_nothing():
    points = draw(PLANE, 5).repeat_interleave(3, 0)
    scores, (mean, spread) = noise(15), _prior(2)
    theta = (mean + 0.2).unsqueeze(0)
    value, _ = _negative_log_posterior(theta, pooled(PLANE, points, scores), mean, spread)
    lengths, signal, single = theta[0, :2].exp(), theta[0, 2].exp(), theta[0, 3].exp() + 1e-4
    kernel = MaternKernel(nu=2.5, ard_num_dims=2).double()
    kernel.lengthscale = lengths
    covariance = signal * kernel(points).to_dense() + 1.0 + single * torch.eye(15, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(15, dtype=torch.float64), covariance)
    prior = 0.5 * ((theta - mean) / spread).square().sum()
    # the pooled value leaves out constants: log 2 pi for each trial, and half the log of each count
    constant = 15 / 2 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64)) + 5 / 2 * torch.log(
        torch.tensor(3.0)
    )
    torch.testing.assert_close(value[0] - prior + constant, -normal.log_prob(scores), atol=1e-6, rtol=0)


def test_noise_is_inferred_from_repetitions():
    points = draw(PLANE, 12).repeat_interleave(8, 0)
    scores = 10.0 * points[:, 0] + 2.0 * noise(96)
    surrogate = fit_surrogate(PLANE, points, no_trend(96), scores)
    single_sd = float((surrogate.noise[0] * 8).sqrt() * surrogate.scale)
    assert single_sd == pytest.approx(2.0, rel=0.15)  # 84 degrees of freedom: 8 % standard error


def test_posterior_follows_the_units_of_the_score():
    points, scores = draw(PLANE, 12), noise(12)
    small, large = (fit_surrogate(PLANE, points, no_trend(12), scores * unit) for unit in (1.0, 1000.0))
    for few, many in zip(small.posterior(points, no_trend(12)), large.posterior(points, no_trend(12)), strict=True):
        torch.testing.assert_close(1000.0 * few, many, rtol=1e-5, atol=1e-6)


def test_a_straight_trend_is_told_apart_from_the_effect():
    points = draw(PLANE, 40)
    time = torch.linspace(-1.7, 1.7, 40, dtype=torch.float64).unsqueeze(-1)
    surrogate = fit_surrogate(PLANE, points, time, points[:, 0] + 1.5 * time[:, 0] + 0.05 * noise(40))
    ends = torch.tensor([[0.1, 0.5], [0.9, 0.5]], dtype=torch.float64)
    (low, high), _ = surrogate.posterior(ends, torch.zeros(2, 1, dtype=torch.float64))
    assert float(high - low) == pytest.approx(0.8, abs=0.12)
    (early, late), _ = surrogate.posterior(ends[:1].expand(2, -1), torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    assert float(late - early) == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize("scores", [[1.0], [2.0, 2.0, 2.0], [0.0, 1e9, -1e9], [1e-12, 2e-12, 0.0]])
def test_fit_never_fails_on_few_equal_or_wild_scores(scores):
    points = draw(PLANE, 1).repeat(len(scores), 1)
    surrogate = fit_surrogate(PLANE, points, no_trend(len(scores)), torch.tensor(scores, dtype=torch.float64))
    mean, sd = surrogate.posterior(draw(PLANE, 5, seed=4), no_trend(5))
    assert bool(mean.isfinite().all())
    assert bool((sd > 0).all())


def test_improvement_is_that_of_botorch_on_a_plain_model():
    points = draw(PLANE, 10)
    surrogate = fit_surrogate(PLANE, points, no_trend(10), noise(10))
    value = log_noisy_improvement(surrogate, points, torch.zeros(0, dtype=torch.float64), 4096, seed=1)
    others = draw(PLANE, 5, seed=6)
    posterior = botorch_model(surrogate).posterior(surrogate.columns(torch.cat([others, points]), no_trend(15)))
    drawn = _joint(posterior, 100_000)
    improvement = (drawn[:, :5] - drawn[:, 5:].max(-1, keepdim=True).values).clamp_min(0).mean(0)
    torch.testing.assert_close(value(others).exp(), improvement, rtol=0.1, atol=2e-3)  # two Monte Carlo estimates


def _joint(posterior, count: int) -> torch.Tensor:
    covariance = posterior.distribution.covariance_matrix
    factor = torch.linalg.cholesky(covariance + 1e-8 * torch.eye(len(covariance), dtype=torch.float64))
    normal = torch.randn(count, len(covariance), generator=generator(9), dtype=torch.float64)
    return posterior.mean[:, 0] + normal @ factor.mT


def test_improvement_gradient_agrees_with_finite_differences():
    points = draw(PLANE, 8)
    surrogate = fit_surrogate(PLANE, points, no_trend(8), noise(8))
    value = log_noisy_improvement(surrogate, points, torch.zeros(0, dtype=torch.float64), 32, seed=1)
    where = torch.tensor([[0.33, 0.61]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (where,), eps=1e-6, atol=1e-4)


def test_botorch_model_is_a_botorch_model():
    surrogate = fit_surrogate(PLANE, draw(PLANE, 4), no_trend(4), noise(4))
    assert isinstance(botorch_model(surrogate), SingleTaskGP)
