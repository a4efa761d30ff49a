"""Fit a response model to few trials, check it on others, then search through it.

Shows calibration trials of one virtual patient, two models and their skill on held-out
trials, a policy that climbs the model's forecast and corrects it by what comes back, and
the same forecaster and objective as a BoTorch model under any acquisition function.
Every number here is simulated.

Run: python examples/fit_then_search.py
"""

from functools import partial

import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.sampling.index_sampler import IndexSampler

from stimopt.landscape import calibrate, repeated_scores
from stimopt.models import ScoreModel, fit_arx, fit_ieeg_network, fit_no_effect
from stimopt.objective import BandPower, Charge, WeightedSum
from stimopt.policies import GradientPolicy
from stimopt.safety_profiles import PROFILES
from stimopt.session import Session
from stimopt.simulators import linear_patient
from stimopt.skill import held_out_skill, split_trials
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator

INTERVAL_S = 30.0
READINGS = ("r2", "r2_shuffled", "crps_uv", "coverage_90")


def main(quick: bool = False) -> None:
    calibration, steps, members, trials = (24, 40, 1, 3) if quick else (100, 600, 3, 16)

    patient = linear_patient(patient=7)
    pairs = patient.montage.neighbour_pairs()
    template = pulse_train(patient.montage, pairs[0], amplitude_ma=1.0, frequency_hz=50.0, pulse_width_us=200.0)
    amplitude = Parameter("amplitude_ma", "continuous", 0.5, 5.0, unit="mA")
    frequency = Parameter("frequency_hz", "log", 5.0, 60.0, unit="Hz")
    space = StimulationSpace((contact_site(template, pairs), amplitude, frequency), template, patient.window_s)
    envelope = PROFILES["mapping-50hz-seeg"]
    # drive alpha at the price of 0.02 decades of power per microcoulomb
    objective = WeightedSum((BandPower((8.0, 13.0), better="higher"), Charge()), (1.0, 0.02))

    # fit on three quarters of the trials, judge on the rest
    recorded = calibrate(patient, space, envelope, trials=calibration, seed=1, interval_s=INTERVAL_S)
    training, held_out = split_trials(recorded, 0.25, seed=1)
    fits = {
        "no effect": fit_no_effect,
        "arx": fit_arx,
        "network": partial(fit_ieeg_network, steps=steps, members=members),
    }
    forecasters = {name: fit(training, seed=1) for name, fit in fits.items()}
    print(f"simulated patient 7: fitted on {len(training)} trials, judged on {len(held_out)} others")
    print("            " + "".join(f"{name:>13}" for name in READINGS))
    for name, forecaster in forecasters.items():
        skill = held_out_skill(forecaster, held_out)
        print(f"  {name:<10}" + "".join(f"{skill[reading]:>13.3f}" for reading in READINGS))

    # a policy that climbs the network's forecast
    now = recorded.context[-1]
    climb = GradientPolicy(
        space, envelope, forecasters["network"], objective, now, seed=1, starts=4, steps=5 if quick else 15, samples=4
    )
    session = Session(climb, objective, envelope, template, seed=1, interval_s=INTERVAL_S)
    history = session.run(patient, trials)
    print(f"gradient policy, {trials} trials, recommends {described(space, space.locate(session.recommend()))}")

    # the same forecaster under an acquisition function of BoTorch
    model = ScoreModel(forecasters["network"], objective, space, now, samples=16, seed=1)
    tried = space.locate(history.stimuli)
    acquisition = qLogNoisyExpectedImprovement(
        model, tried, IndexSampler(torch.Size([16]), seed=1), prune_baseline=False
    )
    drawn = torch.rand(64, space.dimension, generator=generator(1, "candidates"), dtype=torch.float64)
    drawn = space.snap(drawn)
    drawn = drawn[envelope.allowed(space.stimulus(drawn), history, history.next_time_s)]
    with torch.no_grad():
        best = drawn[int(acquisition(drawn.unsqueeze(1)).argmax())]
    print(f"qLogNEI on the forecaster would try {described(space, best)}")

    # what both are worth, where the truth is known: the same noise for all, many windows
    both = space.stimulus(torch.stack([space.locate(session.recommend()), best]))
    stimuli = concatenate([no_stimulus(patient.montage, (1,)), both])
    expected = repeated_scores(patient, objective, stimuli, repeats=4 if quick else 32, seed=2).mean(0)
    print("expected score, log10 uV^2 at 8-13 Hz less 0.02 per uC:")
    for name, score in zip(
        ("without stimulation", "gradient policy", "qLogNEI, next trial"), expected.tolist(), strict=True
    ):
        print(f"  {name:<20}{score:6.3f}")


def described(space: StimulationSpace, unit: torch.Tensor) -> str:
    values = space.describe(unit)
    return f"{values['contacts']} at {values['amplitude_ma']:.2f} mA and {values['frequency_hz']:.0f} Hz"


if __name__ == "__main__":
    main()
