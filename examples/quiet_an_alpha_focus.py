"""Quiet an alpha focus: the whole loop on one virtual patient, inside a safety envelope.

Shows a search space over contacts, current and frequency, the Bayesian policy, the session
that puts every trial before the envelope, and the patient's true optimum to judge the
result by, which only a simulation has. Every number here is simulated.

Run: python examples/quiet_an_alpha_focus.py
"""

from stimopt.landscape import dense_search, repeated_scores
from stimopt.objective import BandPower
from stimopt.policies import BayesianPolicy
from stimopt.safety_profiles import PROFILES
from stimopt.session import Session
from stimopt.simulators import jansen_rit_patient
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.stimulus import pulse_train

INTERVAL_S = 30.0


def main(quick: bool = False) -> None:
    trials, points, repeats, rounds = (7, 24, 2, 0) if quick else (24, 192, 8, 2)

    # who answers, what may vary, what is safe, what is wanted
    patient = jansen_rit_patient(patient=6, dt_s=2e-3 if quick else 1e-3)
    pairs = patient.montage.neighbour_pairs()
    template = pulse_train(patient.montage, pairs[0], amplitude_ma=1.0, frequency_hz=50.0, pulse_width_us=200.0)
    space = StimulationSpace(
        (
            contact_site(template, pairs),
            Parameter("amplitude_ma", "continuous", 0.5, 5.0, unit="mA"),
            Parameter("frequency_hz", "log", 20.0, 100.0, unit="Hz"),
        ),
        template,
        duration_s=patient.window_s,  # the train fills the window
    )
    envelope = PROFILES["mapping-50hz-seeg"]
    objective = BandPower((8.0, 13.0), better="lower")

    # search, then keep what the policy recommends
    policy = BayesianPolicy(space, envelope, seed=1)
    session = Session(policy, objective, envelope, template, seed=1, interval_s=INTERVAL_S)
    history = session.run(patient, trials)
    kept = session.recommend()
    print(f"simulated patient 6, {len(history)} trials, {len(space.parameters)} parameters, {len(pairs)} contact pairs")
    print("recommended:")
    for parameter in space.parameters:
        value = space.describe(space.locate(kept))[parameter.name]
        print(f"  {parameter.name:<14}{value if isinstance(value, str) else f'{value:.3g} {parameter.unit}'}")

    # how good it is: expected scores over repeated windows, against a dense search
    truth = dense_search(patient, space, envelope, objective, points=points, repeats=repeats, seed=2, rounds=rounds)
    reached = float(repeated_scores(patient, objective, kept.expand(1), repeats=repeats, seed=truth.seed).mean())
    print(f"expected power at 8-13 Hz, geometric mean over channels: {10**-reached:.0f} uV^2")
    print(f"  without stimulation {10**-truth.silence:.0f} uV^2, at the true optimum {10**-truth.optimum:.0f} uV^2")
    print(f"  simple regret {truth.optimum - reached:.3f} in log10 uV^2; one trial varies by {truth.trial_sd:.2f}")

    # how far it is from each limit: 1 is idle, 0 is at the limit
    print(f"safety envelope {envelope.name!r}:")
    for verdict in envelope.report(kept, history, history.next_time_s):
        if verdict.verdict != "NOT EVALUATED":
            asked = f"{verdict.value:.3g} of {verdict.allowed:.3g} {verdict.unit}"
            print(f"  {verdict.verdict:<8} margin {verdict.margin:5.2f}  {verdict.label}: {asked}")


if __name__ == "__main__":
    main()
