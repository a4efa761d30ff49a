"""A policy of your own in twenty lines, held to the contract, compared with random draws.

Shows what a policy is: a pure function from the history to the next stimulus, that keeps
no memory and stays inside its space and envelope. This one climbs: it steps around the best
setting so far, and shorter as trials pass (a (1+1) evolution strategy with a fixed decay;
Beyer and Schwefel, Natural Computing 1 (2002) 3-52). Where most contacts do nothing a climber
starts in the wrong place, so it may well lose to random draws: comparing is how one finds out.
Every number here is simulated.

Run: python examples/bring_your_own_policy.py
"""

from dataclasses import dataclass

import torch

from stimopt.history import History
from stimopt.landscape import dense_search, repeated_scores
from stimopt.montage import Montage
from stimopt.objective import BandPower, Charge, WeightedSum
from stimopt.policies import RandomPolicy
from stimopt.policy import Policy
from stimopt.safety import Envelope
from stimopt.safety_profiles import PROFILES
from stimopt.session import Session
from stimopt.simulators import linear_patient
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.statistics import paired_difference
from stimopt.stimulus import Stimulus, pulse_train
from stimopt.tensors import concatenate, map_tensors
from stimopt.testing import check_policy


@dataclass(frozen=True)
class StepAround(Policy):
    """Steps around the best so far; falls back on even draws where the envelope allows no step."""

    space: StimulationSpace
    envelope: Envelope
    first_step: float = 0.4  # share of an axis

    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        """See Policy."""
        if len(history) == 0:
            return RandomPolicy(self.space, self.envelope).propose(history, generator)
        best = self.space.locate(history.best_tried())
        step = self.first_step / (1 + len(history)) ** 0.5
        around = best + step * torch.randn(64, self.space.dimension, generator=generator, dtype=best.dtype)
        stimuli = self.space.stimulus(self.space.snap(around))
        allowed = self.envelope.allowed(stimuli, history, history.next_time_s).nonzero()
        if len(allowed):
            return stimuli[int(allowed[0])]
        return RandomPolicy(self.space, self.envelope).propose(history, generator)


def main(quick: bool = False) -> None:
    patients, trials, points, repeats = ((5, 6), 8, 32, 2) if quick else (range(5, 13), 24, 512, 8)
    envelope = PROFILES["mapping-50hz-seeg"]
    # drive alpha at the price of 0.02 decades of power per microcoulomb
    objective = WeightedSum((BandPower((8.0, 13.0), better="higher"), Charge()), (1.0, 0.02))
    regrets = []
    print("simple regret, log10 uV^2 at 8-13 Hz less 0.02 per uC (simulated)")
    print("  patient   step around        random")
    for number in patients:
        patient = linear_patient(patient=number)
        space = space_of(patient.montage)
        kept = []
        for policy in (StepAround(space, envelope), RandomPolicy(space, envelope)):
            session = Session(policy, objective, envelope, space.template, seed=number, interval_s=30.0)
            history = session.run(patient, trials)
            check_policy(policy, space, envelope, history)  # raises and names the clause that is broken
            kept.append(session.recommend())
        truth = dense_search(patient, space, envelope, objective, points=points, repeats=repeats, seed=number)
        both = concatenate([map_tensors(stimulus, lambda tensor: tensor.unsqueeze(0)) for stimulus in kept])
        reached = repeated_scores(patient, objective, both, repeats=repeats, seed=truth.seed).mean(0)
        own, random = (truth.optimum - reached).tolist()
        regrets.append((own, random))
        print(f"  {number:>7}{own:>14.3f}{random:>14.3f}")
    gap = paired_difference(*zip(*regrets, strict=True), statistic="mean")
    verdict = "better" if gap.high < 0 else "worse" if gap.low > 0 else "not shown to be better or worse"
    print(
        f"step around is {verdict} than random: its regret is {gap.estimate:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    )
    print(f"  mean and 95 % interval over {len(regrets)} patients, {trials} trials each")


def space_of(montage: Montage) -> StimulationSpace:
    pairs = montage.neighbour_pairs()
    template = pulse_train(montage, pairs[0], amplitude_ma=1.0, frequency_hz=50.0)
    amplitude = Parameter("amplitude_ma", "continuous", 0.5, 5.0, unit="mA")
    frequency = Parameter("frequency_hz", "log", 5.0, 60.0, unit="Hz")
    return StimulationSpace((contact_site(template, pairs), amplitude, frequency), template, duration_s=0.5)


if __name__ == "__main__":
    main()
