"""A patient whom the model never saw: no trial, five, twenty, and the stimulus that each would have you try.

Shows the shipped foundation model with a growing past in context, judged on stimulation sites that no past trial
held, beside impulse responses fitted on the same trials; then the stimulus that each forecasts to evoke most, and
what it truly evokes, which only a simulation tells. The model was trained on simulations, this patient is one.

Run: python examples/few_trials.py
"""

import torch
from scipy.stats import spearmanr

from stimopt.forecaster import Context, Forecaster
from stimopt.landscape import repeated_scores
from stimopt.models import fit_ieeg_adapted, fit_impulse_regression, load_foundation
from stimopt.objective import EvokedAmplitude
from stimopt.protocol_readings import examined
from stimopt.protocol_splits import Design, split_sites
from stimopt.protocol_trials import examination, past_trials, resting
from stimopt.safety_profiles import PROFILES
from stimopt.simulators import jansen_rit_patient
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator

SEED = 3


def main(quick: bool = False) -> None:
    stimuli, repeats, candidates, most = (2, 2, 8, 10) if quick else (8, 8, 128, 20)

    # a patient, and trials at some of the sites; the test is at others
    patient = jansen_rit_patient(patient=300_001, window_s=0.5, rate_hz=250.0, dt_s=2e-3)
    design = Design(patient.montage, split_sites(patient.montage, SEED))
    rest, past = resting(patient, SEED), past_trials(patient, design, most, SEED)
    test = examination(
        patient, design, splits=("sites",), stimuli=stimuli, repeats=repeats, states=2 * repeats, seed=SEED
    )
    seen, unseen = (", ".join(sites) for sites in (design.sites.seen, design.sites.unseen))
    print(f"simulated patient 300001: past trials at {seen}; test at {unseen}")

    # forecasts from a growing past: nothing is trained but the linear model
    model, samples = load_foundation(), round(patient.window_s * 250.0)
    forecasters: dict[str, Forecaster] = {
        "foundation, 0 trials": model.for_patient(patient.montage, rest, samples=samples),
        "foundation, 5 trials": fit_ieeg_adapted(past[:5], rest=rest, adapt="context"),
        f"foundation, {most} trials": fit_ieeg_adapted(past, rest=rest, adapt="context"),
        f"blended, {most} trials": fit_ieeg_adapted(past, rest=rest, adapt="blended"),
        f"linear, {most} trials": fit_impulse_regression(past),
    }
    print(f"{'at sites never stimulated':<26}{'mean response R2':>18}{'CRPS uV':>10}{'90 % covers':>13}")
    for name, forecaster in forecasters.items():
        read = examined(forecaster, test)["sites"]
        print(f"  {name:<24}{read['r2_mean']:>18.2f}{read['crps_uv']:>10.1f}{read['coverage_90']:>13.2f}")

    # how each ranks allowed stimuli at any site by what they evoke, and what its first choice truly evokes
    objective, envelope = EvokedAmplitude((0.0, 0.5)), PROFILES["mapping-50hz-seeg"]
    drawn, _ = design.anywhere(candidates, (1, 8), generator(SEED, "candidates"))
    drawn = drawn[envelope.allowed(drawn)]
    truth = repeated_scores(patient, objective, drawn, repeats=repeats, seed=SEED).mean(0)
    low, high, middle = float(truth.min()), float(truth.max()), float(truth.mean())
    print(f"{len(truth)} allowed stimuli evoke {low:.0f} to {high:.0f} uV, {middle:.0f} on average")
    for name, forecaster in forecasters.items():
        score = expected(forecaster, objective, rest, drawn)
        order = float(spearmanr(score, truth).statistic)
        evoked = float(truth[int(score.argmax())])
        print(f"  {name:<24}rank correlation {order:.2f}, its first choice evokes {evoked:.0f} uV")


def expected(forecaster: Forecaster, objective: EvokedAmplitude, rest: Context, stimuli: Stimulus) -> torch.Tensor:
    """The score of the mean forecast, over some states that the patient was seen in."""
    with torch.no_grad():
        each = [objective(forecaster.forecast(now, stimuli).template, stimuli) for now in (rest[i] for i in range(4))]
    return torch.stack(each).mean(0)


if __name__ == "__main__":
    main()
