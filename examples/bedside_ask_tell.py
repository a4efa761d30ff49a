"""Ask and tell at the bedside: a person delivers each stimulus and says what came back.

Shows a montage of one sEEG shaft, single pulses under the profile `spes-seeg`, a contact
that may carry no current, what a refusal looks like and what it proposes instead, and a
stop rule that locks the session when an after-discharge is seen. The recordings of the
"person" are drawn by this script; nothing was delivered to anyone.

Run: python examples/bedside_ask_tell.py
"""

import math

import torch

from stimopt.errors import EnvelopeError, SessionLockedError
from stimopt.montage import Contact, Montage, monopolar
from stimopt.objective import EvokedAmplitude
from stimopt.policies import BayesianPolicy
from stimopt.response import Response
from stimopt.safety_profiles import PROFILES
from stimopt.session import Session
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.stimulus import Stimulus, pulse_train
from stimopt.stop_rule import AfterdischargeRule
from stimopt.tensors import generator

RATE_HZ, WINDOW_S, ONSET_S = 500.0, 1.5, 0.3
INTERVAL_S = 5.0


def main(quick: bool = False) -> None:
    trials = 8 if quick else 16
    montage = seeg_shaft()
    template = pulse_train(montage, "A2-A3", amplitude_ma=1.0, pulses=1, pulse_width_us=300.0, onset_s=ONSET_S)
    pairs = [pair for pair in montage.neighbour_pairs() if "A1" not in pair.split("-")]
    space = StimulationSpace(
        (contact_site(template, pairs), Parameter("amplitude_ma", "continuous", 1.0, 7.0, unit="mA")), template
    )
    envelope = PROFILES["spes-seeg"].forbidding("A1").with_limits(phase_charge_uc=2.0)

    # a refusal says what came, what is allowed and the way out, and nothing is delivered
    for contacts, amplitude_ma in (("A2-A3", 9.0), ("A1-A2", 3.0)):
        asked = pulse_train(montage, contacts, amplitude_ma=amplitude_ma, pulse_width_us=300.0, onset_s=ONSET_S)
        try:
            envelope.require(asked)
        except EnvelopeError as error:
            print(f"refused {amplitude_ma:g} mA at {contacts}, limit {error.limit!r}:\n  {error}")

    session = Session(
        BayesianPolicy(space, envelope, seed=1, startup=4),
        EvokedAmplitude(between_s=(ONSET_S + 0.01, ONSET_S + 0.3)),
        envelope,
        template,
        seed=1,
        interval_s=INTERVAL_S,  # at a real bedside: clock=time.time
        stop_rule=AfterdischargeRule(line_length_ratio=4.0, for_s=0.5),
    )
    print(f"{len(montage.contacts)} contacts on one shaft, {len(pairs)} pairs to try, single pulses of 300 us")
    for number in range(trials):
        stimulus = session.ask()  # show it, deliver it
        score = session.tell(person(stimulus, number), note="awake, at rest")
        print(f"  trial {number + 1:2}  {described(space, stimulus)}  evoked {score:5.1f} uV")
    print(f"recommended: {described(space, session.recommend())}")

    # an after-discharge: the session locks, and stays locked
    stimulus = session.ask()
    session.tell(person(stimulus, trials, afterdischarge=True))
    try:
        session.ask()
    except SessionLockedError as error:
        print(f"locked: {error}")


def seeg_shaft() -> Montage:
    """Eight contacts 3.5 mm apart, each a cylinder of 0.8 by 2 mm, read as neighbouring pairs."""
    area_cm2 = math.pi * 0.08 * 0.2
    contacts = [Contact(f"A{i}", (3.5 * i, 0.0, 0.0), area_cm2, "depth", "A") for i in range(1, 9)]
    return monopolar(contacts, frame="patient").bipolar()


def person(stimulus: Stimulus, number: int, afterdischarge: bool = False) -> Response:
    """What an amplifier would hand over: noise, an evoked potential that grows with current near A5."""
    noise = generator(1, "person", number)
    channels = len(stimulus.montage.channels)
    time_s = torch.arange(round(WINDOW_S * RATE_HZ), dtype=torch.float64) / RATE_HZ
    after_s = (time_s - ONSET_S).clamp_min(0.0)
    strength_ma = (stimulus.amplitude_ma.abs() * torch.tensor([0.1, 0.2, 0.4, 0.7, 1.0, 0.7, 0.4, 0.2])).amax()
    shape = (after_s / 0.03) * torch.exp(1 - after_s / 0.03)  # peaks 30 ms after the pulse
    signal_uv = 60.0 * torch.tanh(strength_ma / 4.0) * shape.expand(channels, -1)
    if afterdischarge:
        signal_uv = signal_uv + 400.0 * torch.sin(2 * math.pi * 14.0 * after_s)
    noisy_uv = signal_uv + 8.0 * torch.randn(signal_uv.shape, generator=noise, dtype=torch.float64)
    return Response(stimulus.montage, noisy_uv, RATE_HZ)


def described(space: StimulationSpace, stimulus: Stimulus) -> str:
    values = space.describe(space.locate(stimulus))
    return f"{values['contacts']} at {values['amplitude_ma']:.2f} mA"


if __name__ == "__main__":
    main()
