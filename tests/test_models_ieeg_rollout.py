"""Roll-outs of ongoing activity, frozen features and unrecorded channels, on tiny networks made on the spot."""

import math
from dataclasses import replace

import pytest
import torch

from stimopt.errors import ConfigError, DataError, ShapeError
from stimopt.forecaster import Context, Trials
from stimopt.models.ieeg_alignment import align, alignment_report, matched_channels
from stimopt.models.ieeg_embedding import cut_windows, embed, fit_linear_probe
from stimopt.models.ieeg_foundation import FoundationModel
from stimopt.models.ieeg_impute import forecast_kept_back, impute
from stimopt.models.ieeg_losses import own_samples_loss
from stimopt.models.ieeg_rollout import Noise, roll_out
from stimopt.models.ieeg_subject import Shots, joined_subjects
from stimopt.models.ieeg_transformer import IeegTransformer, TransformerSize
from stimopt.models.ieeg_waves import patches
from stimopt.models.roll_out_drift import roll_out_drift
from stimopt.montage import Contact, monopolar
from stimopt.response import Response
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator

RATE_HZ, CHANNELS = 250.0, 4
SIZE = TransformerSize(width=16, layers=1, ongoing_width=16, ongoing_layers=2, heads=2, hubs=2, rhythms=2, factors=1)


def montage(order=range(CHANNELS)):
    return monopolar([Contact(f"A{i + 1}", (6.0 * i, 2.0 * i, 0.0), 0.05, "depth", "A") for i in order], "test")


def rhythm(windows, samples, seed=0):
    """Damped noise-driven rhythms around 10 Hz, an autoregression of order two, of another size in each channel, uV."""
    pole, angle = 0.95, 2 * math.pi * 10.0 / RATE_HZ
    noise = torch.randn(windows, CHANNELS, samples + 200, generator=generator(seed, "rhythm"), dtype=torch.float64)
    signal = torch.zeros_like(noise)
    for t in range(2, noise.shape[-1]):
        before = 2 * pole * math.cos(angle) * signal[..., t - 1] - pole**2 * signal[..., t - 2]
        signal[..., t] = before + noise[..., t]
    size = 5.0 * torch.arange(1, CHANNELS + 1, dtype=torch.float64).unsqueeze(-1)
    return Context(montage(), (size * signal[..., 200:]).float(), RATE_HZ)


def made(weights=None, rest=None, trials=None, samples=125):
    network = weights or IeegTransformer(SIZE, generator(0, "weights"))
    model = FoundationModel(SIZE, {k: v.detach().clone() for k, v in network.state_dict().items()})
    return model.for_patient(montage(), rest or rhythm(16, 400), trials, samples=samples)


def taught(rest):
    """A network whose ongoing head is fitted in closed form: linear regression of each next patch on random tokens."""
    network = IeegTransformer(replace(SIZE, ongoing_width=48), generator(1, "weights")).requires_grad_(False)
    model = FoundationModel(network.size, dict(network.state_dict()))
    forecaster = model.for_patient(rest.montage, rest, samples=125)
    unit, middle = forecaster.subject.spread_uv.unsqueeze(-1), forecaster.subject.rest_uv.unsqueeze(-1)
    patch = patches((rest.signal_uv - middle) / unit, RATE_HZ, 16)
    token, _ = network.follow(standing(forecaster), patch, torch.full_like(patch[..., :1], 2.0))
    known = torch.nn.functional.layer_norm(token, token.shape[-1:])[:, :, :-1].reshape(-1, 48).double()
    wanted = patch[:, :, 1:].reshape(-1, 16).double()
    known = torch.cat([known, torch.ones(len(known), 1).double()], 1)
    gain = torch.linalg.solve(known.mT @ known + 1e-2 * torch.eye(49).double(), known.mT @ wanted)
    scale = (wanted - known @ gain).square().mean(0).sqrt()
    head = network.next_patch
    head.weight.zero_()
    head.weight[:16], head.bias[:16] = gain[:-1].mT.float(), gain[-1].float()
    head.bias[16:] = 3 * torch.atanh(scale.clamp(0.06, 15.0).log() / 3).float()
    return FoundationModel(network.size, dict(network.state_dict())).for_patient(rest.montage, rest, samples=125)


def loud(bias):
    network = IeegTransformer(SIZE, generator(0, "weights")).requires_grad_(False)
    network.next_patch.bias[16:] = bias
    return network


@pytest.fixture(scope="module")
def rest():
    return rhythm(40, 400)


@pytest.fixture(scope="module")
def patient(rest):
    return taught(rest)


def standing(forecaster):
    return forecaster.model.network.standing(joined_subjects([forecaster.subject]))


def stepped(network, where, patch):
    memory, tokens = None, []
    for i in range(patch.shape[2]):
        whole = torch.full_like(patch[:, :, :1, :1], 2.0)
        token, memory = network.follow(where, patch[:, :, i : i + 1], whole, memory)
        tokens.append(token)
    return torch.cat(tokens, 2), memory


def shots(context):
    none, charge = torch.zeros(1, len(context), 0), torch.zeros(1, len(context), 2, CHANNELS)
    response = context.new_zeros(1, *context.shape[:2], 0)
    good = torch.ones_like(context, dtype=torch.bool).unsqueeze(0)
    traces = torch.zeros(1, len(context), 2, 0)
    return Shots(context.unsqueeze(0), good, charge, none, traces, traces, none, none, none, response, response.bool())


@pytest.mark.parametrize("count", [1, 16])
def test_patch_by_patch_from_memory_is_the_network_s_own_pass(count):
    forecaster = made()
    network, context = forecaster.model.network, rhythm(3, count * 25).signal_uv / 20
    whole = network.ongoing(joined_subjects([forecaster.subject]), shots(context), RATE_HZ)
    token, _ = stepped(network, standing(forecaster), whole.patch)
    assert (token - whole.token).abs().max() < 1e-5


def test_beyond_sixteen_patches_memory_is_attention_that_looks_back_on_sixteen():
    forecaster = made()
    patch = patches(rhythm(2, 40 * 25).signal_uv / 20, RATE_HZ, 40)
    whole, _ = forecaster.model.network.follow(standing(forecaster), patch, torch.full_like(patch[..., :1], 2.0))
    token, memory = stepped(forecaster.model.network, standing(forecaster), patch)
    assert (token - whole).abs().max() < 1e-5
    assert all(key.shape[-2] == 15 for key, _ in memory)
    other = patch.clone()
    other[:, :, 39 - 2 * 15 - 1] += 1.0  # two layers look back thirty patches
    further, _ = forecaster.model.network.follow(standing(forecaster), other, torch.full_like(patch[..., :1], 2.0))
    assert torch.equal(further[:, :, -1], whole[:, :, -1])
    assert not torch.equal(further[:, :, -2], whole[:, :, -2])


def test_a_minute_stays_within_the_spectrum_of_rest(patient, rest):
    rolled = roll_out(patient, rest[:1], 60.0, generator(0, "roll"), n=2, rest=rest)
    drift = roll_out_drift(rolled, rest)
    assert rolled.signal_uv.shape == (2, 1, CHANNELS, 15000)
    assert abs(drift["growth_db_per_min"]) < 1.0  # 3 dB would be twice the energy
    assert drift["spectrum_drift"] < 0.15  # decades; two halves of rest differ by 0.05
    assert drift["spectrum_error"] < 0.25  # edges of patches add to the fastest band
    assert drift["within_rest"] >= 0.75
    assert drift["pulled_back"] < 0.01
    alpha = torch.fft.rfft(rolled.signal_uv[..., -2500:]).abs().square().mean((0, 1))  # [channel, frequency]
    peak_hz = torch.fft.rfftfreq(2500, 1 / RATE_HZ)[alpha.argmax(-1)]
    assert ((peak_hz > 7.5) & (peak_hz < 12.5)).all()


def test_noise_shaped_as_what_rest_misses_keeps_the_spectrum_better(patient, rest):
    errors = [
        roll_out_drift(roll_out(patient, rest[:1], 10.0, generator(0, "roll"), n=2, rest=shape), rest)["spectrum_error"]
        for shape in (rest, None)
    ]
    assert errors[0] < 0.6 * errors[1]


def test_shaped_noise_has_the_covariance_it_was_given():
    root = torch.linalg.cholesky(torch.tensor([[2.0, 0.6], [0.6, 1.0]]))
    noise = Noise(generator(0, "noise"), root, torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]])))
    drawn = noise.like(torch.zeros(20000, 2, 1, 3))
    assert torch.allclose(drawn[:, 0, 0].mT.cov()[:2, :2], root @ root.mT, atol=0.06)  # 4 / sqrt(20000) x 2
    assert abs(torch.corrcoef(drawn[:, :, 0, 1].mT)[0, 1] - 0.8) < 0.02
    assert drawn[..., 2].abs().max() == 0


def test_a_roll_out_is_in_microvolts_of_each_channel(patient, rest):
    deviation = roll_out(patient, rest[:1], 10.0, generator(0, "roll"), n=2).signal_uv.std((0, 1, 3))
    assert torch.allclose(deviation, rest.signal_uv.std((0, 2)), rtol=0.25)


def test_the_same_seed_draws_the_same_and_rows_differ(patient, rest):
    same = Context(rest.montage, rest.signal_uv[:1].expand(2, -1, -1), RATE_HZ)
    one, again = (roll_out(patient, same, 1.0, generator(3, "roll"), n=2).signal_uv for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.allclose(one[0, 0], one[0, 1])
    assert not torch.allclose(one[0, 0], one[1, 0])


def test_patches_of_too_much_energy_are_pulled_back_and_told(rest):
    rolled = roll_out(made(loud(6.0), rest), rest[:1], 2.0, generator(0, "roll"))
    wild = roll_out(made(loud(6.0), rest), rest[:1], 2.0, generator(0, "roll"), most_energy=math.inf)
    assert rolled.outcomes["pulled_back"].item() == 1.0
    assert wild.outcomes["pulled_back"].item() == 0.0
    assert rolled.signal_uv.square().mean() < 0.2 * wild.signal_uv.square().mean()
    assert roll_out_drift(Response(rest.montage, wild.signal_uv.repeat(1, 1, 1, 8), RATE_HZ), rest)["energy_db"] > 10


def test_roll_outs_refuse_what_does_not_fit(patient, rest):
    with pytest.raises(ShapeError, match="of signal or more"):
        roll_out(patient, replace(rest, signal_uv=rest.signal_uv[..., :20]), 1.0, generator(0))
    with pytest.raises(ConfigError, match="seconds"):
        roll_out(patient, rest, 0.0, generator(0))
    deaf = replace(patient, subject=replace(patient.subject, heard=torch.tensor([True, True, True, False])))
    with pytest.raises(DataError, match="asked for"):
        roll_out(deaf, rest, 1.0, generator(0))
    with pytest.raises(ShapeError, match="6 and 2"):
        roll_out_drift(Response(rest.montage, rest.signal_uv, RATE_HZ), rest)


def test_the_score_of_own_samples_is_least_near_the_truth_and_has_gradients(rest):
    def score(bias, rows=40):
        network = IeegTransformer(SIZE, generator(0, "weights"))
        with torch.no_grad():
            network.next_patch.bias[16:] = bias
        forecaster = made(network, rest)
        patch = patches(torch.randn(rows, CHANNELS, 200, generator=generator(0, "white")), RATE_HZ, 16)
        loss = own_samples_loss(network, standing(forecaster).detach(), patch, 3, generator(0, "own"))
        loss.backward()
        return loss.item(), network.next_patch.bias.grad[16:].sum().item()

    right = 0.5 * math.log(2 / 25)  # white noise in cosines of 25 samples
    (low, down), (middle, _), (high, up) = score(right - 1.2), score(right), score(right + 1.2)
    assert middle < min(low, high)
    assert down < 0 < up


def test_features_are_the_same_in_any_order_of_channels():
    model, context = made().model, rhythm(5, 250)
    order = torch.tensor([2, 0, 3, 1])
    mixed = montage(order.tolist())
    turned = [replace(c, montage=mixed, signal_uv=c.signal_uv[:, order]) for c in (context, rhythm(16, 400))]
    features = embed(model, context, rhythm(16, 400))
    assert features.shape == (5, CHANNELS, SIZE.width + SIZE.ongoing_width)
    assert torch.allclose(embed(model, *turned), features[:, order], atol=1e-4)


def test_a_probe_reads_the_size_of_a_window_from_frozen_features(rest):
    model, scale = made().model, torch.linspace(0.3, 3.0, 40)
    windows = replace(rest, signal_uv=rest.signal_uv * scale.reshape(-1, 1, 1))
    features = embed(model, windows, rest).mean(1)
    probe = fit_linear_probe(features, scale.log().unsqueeze(-1))
    assert probe.r_squared.item() > 0.8  # the size is in every patch
    assert probe.predict(features).shape == (40, 1)


def test_left_out_rows_in_closed_form_are_fits_without_them():
    source = generator(0, "probe")
    x, y = torch.randn(30, 6, generator=source), torch.randn(30, 2, generator=source)
    group = torch.arange(30) // 3
    probe = fit_linear_probe(x, y, group, penalties=(0.1,))
    centred = x.double() - x.double().mean(0)
    ridge = 0.1 * centred.square().sum() / 6 * torch.eye(6).double()
    for number in (0, 7):
        kept = group != number
        seen = torch.cat([centred, torch.ones(30, 1).double()], 1)
        gram = seen[kept].mT @ seen[kept] + torch.block_diag(ridge, torch.zeros(1, 1).double())
        weight = torch.linalg.solve(gram, seen[kept].mT @ y[kept].double())
        assert torch.allclose(probe.left_out[~kept], seen[~kept] @ weight, atol=1e-10)


def test_windows_are_cut_one_after_the_other():
    cut = cut_windows(Context(montage(), torch.arange(4000.0).reshape(4, 1000), RATE_HZ), 1.5)
    assert cut.signal_uv.shape == (2, 4, 375)
    assert cut.signal_uv[1, 2, 0] == 2375.0


def test_channels_are_paired_by_place_and_none_beyond_reach():
    one = torch.tensor([[0.0, 0, 0], [50, 0, 0], [math.nan, 0, 0], [200, 0, 0]])
    other = torch.tensor([[52.0, 0, 0], [1, 0, 0]])
    assert matched_channels(one, other).tolist() == [[0, 1], [1, 0]]


def test_a_turn_between_patients_is_found_and_helps():
    source = generator(0, "turn")
    place = 40 * torch.randn(20, 3, generator=source)
    latent = torch.randn(20, 3, generator=source).double()
    read = torch.linalg.qr(torch.randn(12, 3, generator=source).double()).Q
    turn = torch.linalg.qr(torch.randn(3, 3, generator=source).double()).Q
    one = latent @ turn @ read.mT + 2.0
    other = latent @ read.mT + 0.01 * torch.randn(20, 12, generator=source)
    target = latent[:, 0]
    report = alignment_report(one, place, other, place + 0.5, target, target, components=3)
    assert report["pairs"] == 20
    assert report["retrieval_with"] > 0.9
    assert report["regression_r2_with"] > 0.9 > report["regression_r2_without"]
    assert report["retrieval_with"] > report["retrieval_without"]
    found = align(one, other, 3)
    assert torch.allclose(found.turned(one), found.kept(other), atol=0.1)
    with pytest.raises(DataError, match="4 or more"):
        align(one[:3], other[:3])


def kernels(rest, trials=None):
    """A patient whose forecast is one kernel on the charge that enters near a channel, and nothing else."""
    network = IeegTransformer(SIZE, generator(0, "weights")).requires_grad_(False)
    network.rhythm.zero_()
    network.head.weight.zero_()
    start = network.sizes[0]
    network.head.bias[start : start + network.sizes[1]] = 0.3
    return made(network, rest, trials)


def test_a_place_is_answered_as_a_channel_there_would_be(rest):
    forecaster = kernels(rest)
    pulse = pulse_train(montage(), "A1", amplitude_ma=3.0).expand(2).to(torch.zeros(()))
    places = torch.tensor([[6.0, 2.0, 0.0], [60.0, 20.0, 0.0]])
    whole = forecaster.forecast(rest[:2], pulse).mean
    asked = impute(forecaster, rest[:2], pulse, places)
    unit = forecaster.subject.spread_uv
    level = forecaster.subject.rest_uv.mean()
    recorded = (whole[:, 1] - forecaster.subject.rest_uv[1]) / unit[1]
    assert [c.name for c in asked.template.montage.channels] == ["query 1", "query 2"]
    assert torch.allclose((asked.mean[:, 0] - level) / unit.mean(), recorded, atol=1e-5)
    assert (asked.mean[:, 1] - level).norm() < 0.2 * (asked.mean[:, 0] - level).norm()


def test_past_trials_go_with_a_question_and_wrong_places_are_refused(rest):
    stimuli = concatenate([pulse_train(montage(), "A1", amplitude_ma=a).expand(1) for a in (1.0, 2.0, 3.0, 4.0)])
    response = Response(montage(), rhythm(4, 125, 9).signal_uv, RATE_HZ)
    forecaster = kernels(rest, Trials(rest[:4], stimuli.to(torch.zeros(())), response))
    silent = no_stimulus(montage(), (1,)).to(torch.zeros(()))
    asked = impute(forecaster, rest[:1], silent, torch.zeros(3, 3), "scalp")
    assert asked.mean.shape == (1, 3, 125)
    assert bool(asked.mean.isfinite().all())
    assert asked.template.montage.contacts[-1].kind == "scalp"
    with pytest.raises(ShapeError, match="finite places"):
        impute(forecaster, rest[:1], silent, torch.full((1, 3), math.nan))


def test_channels_kept_back_tell_nothing_of_themselves(rest):
    network = IeegTransformer(SIZE, generator(4, "weights")).requires_grad_(False)
    network.head.weight.normal_(0.0, 0.2, generator=generator(5, "head"))
    forecaster = made(network, rest)
    silent = no_stimulus(montage(), (2,)).to(torch.zeros(()))
    changed = rest.signal_uv[:2].clone()
    changed[:, 1] += 500.0
    told = [
        forecast_kept_back(forecaster, replace(rest, signal_uv=signal), silent, ["A2"]).mean
        for signal in (rest.signal_uv[:2], changed)
    ]
    assert torch.equal(told[0], told[1])
    assert told[0].shape == (2, 1, 125)
