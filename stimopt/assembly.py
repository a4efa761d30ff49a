"""From a checked file to the objects of a search.

The only place where names of experiment files become objects. Everything here happens
before anything is created on disk, so a mistake costs nothing.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import plugins
from .config import EnvelopeSpec, Experiment, Named, ParameterSpec, Study
from .errors import ConfigError, SpaceError
from .forecaster import Context, Forecaster, Trials
from .landscape import SESSIONS, calibrate
from .montage import NOWHERE_MM, Contact, Montage, monopolar
from .objective import Objective
from .policy import Policy
from .safety import Envelope
from .safety_profiles import PROFILES
from .session import StopRule
from .space import Parameter, StimulationSpace, contact_site
from .stimulus import Stimulus, pulse_train
from .stop_rule import AfterdischargeRule
from .system import System
from .units import canonical_unit, quantity


@dataclass(frozen=True)
class Setting:
    """All that a policy is tried in.

    Attributes:
        montage: Contacts and channels.
        system: Answers; None where a person or a device does.
        space: What may vary.
        envelope: What is safe.
        objective: What is wanted.
        stop_rule: What ends and locks the session.
    """

    montage: Montage
    system: System | None
    space: StimulationSpace
    envelope: Envelope
    objective: Objective
    stop_rule: StopRule | None


def setting_of(search: Experiment | Study, patient: int | None = None) -> Setting:
    """The setting that a file describes, for one patient of a study.

    Raises:
        StimoptError: If a part of it cannot be.
    """
    system = _system_of(search.system, patient) if search.system else None
    montage = system.montage if system else _montage_of(search)
    space = _space_of(search.space, search.stimulus, montage)
    objective: Objective = plugins.build("objectives", search.objective.name, _tupled(search.objective.options), {})
    for channel in getattr(objective, "channels", ()):
        montage.channel_index(channel)
    stop = None
    if search.stop:
        stop = AfterdischargeRule(**search.stop.model_dump())
    return Setting(montage, system, space, _envelope_of(search.envelope, montage), objective, stop)


@dataclass(frozen=True)
class FittedModel:
    """A forecaster, the trials it was fitted on, and the context to forecast from."""

    forecaster: Forecaster
    trials: Trials
    context: Context


def fitted_model(search: Experiment | Study, setting: Setting, seed: int) -> FittedModel | None:
    """The model that a file asks for, fitted on calibration trials of its simulated system; None if it asks for none.

    Raises:
        ConfigError: If there is no simulated system to calibrate on.
    """
    if search.model is None:
        return None
    if setting.system is None:
        raise ConfigError("model: a model is fitted on a simulated system; with a 'montage' leave 'model' out.")
    trials = calibrate(
        setting.system, setting.space, setting.envelope,
        trials=search.model.calibration_trials, seed=seed, interval_s=float(search.interval_s), sessions=SESSIONS,
    )  # fmt: skip
    parts = {"trials": trials, "space": setting.space, "seed": seed}
    forecaster = plugins.build("models", search.model.name, search.model.options, parts)
    return FittedModel(forecaster, trials, mean_context(trials.context))


def mean_context(context: Context) -> Context:
    """The last window before a stimulus, batch shape (): what a forecast starts from."""
    return context[-1]


def policy_of(named: Named, setting: Setting, model: FittedModel | None, seed: int) -> Policy:
    """The policy that a file names, with the parts it asks for.

    Raises:
        ConfigError: If it needs a part that is not there, or an option is wrong.
    """
    parts: dict[str, Any] = {
        "space": setting.space, "envelope": setting.envelope, "objective": setting.objective, "seed": seed,
    }  # fmt: skip
    if model:
        parts |= {"forecaster": model.forecaster, "context": model.context, "trials": model.trials}
    return policy_in(named, parts)


def require_buildable(named: Named, setting: Setting, has_model: bool) -> None:
    """Refuse a policy that cannot be built, before any work is done for it.

    Raises:
        ConfigError: If it needs a model and there is none, or an option is wrong.
    """
    needs_model = "forecaster" in inspect.signature(plugins.find("policies", named.name)).parameters
    if needs_model and not has_model:
        raise ConfigError(f"policy {named.name!r} needs a forecaster; add a 'model:' section.")
    if needs_model and setting.system is None:
        raise ConfigError(
            f"policy {named.name!r} needs a model, which is fitted on a simulated system; name a 'system'."
        )
    if not needs_model:
        policy_of(named, setting, None, 0)


def policy_in(named: Named, parts: Mapping[str, Any]) -> Policy:
    """The policy of a name, with whatever of `parts` it asks for.

    Raises:
        ConfigError: If it needs a part that is not there, or an option is wrong.
    """
    policy: Policy = plugins.build("policies", named.name, named.options, parts)
    return policy


def _system_of(named: Named, patient: int | None) -> System:
    options = named.options if patient is None else {**named.options, "patient": patient}
    system: System = plugins.build("systems", named.name, options, {})
    return system


def _montage_of(search: Experiment | Study) -> Montage:
    spec = search.montage if isinstance(search, Experiment) else None
    if spec is None:
        raise ConfigError("system: name a simulated system, or give a 'montage'.")
    contacts = [
        Contact(c.name, c.position_mm or NOWHERE_MM, c.area_cm2 or float("nan"), c.kind, c.shaft) for c in spec.contacts
    ]
    montage = monopolar(contacts, spec.frame)
    return montage.bipolar() if spec.read == "bipolar" else montage


def _space_of(specs: Mapping[str, ParameterSpec], stimulus: Mapping[str, Any], montage: Montage) -> StimulationSpace:
    template = _template_of(stimulus, specs, montage)
    parameters = tuple(_parameter_of(name, spec, template) for name, spec in specs.items())
    return StimulationSpace(parameters, template, stimulus.get("duration_s"))


def _template_of(stimulus: Mapping[str, Any], specs: Mapping[str, ParameterSpec], montage: Montage) -> Stimulus:
    known = {
        "contacts",
        "amplitude_ma",
        "frequency_hz",
        "pulse_width_us",
        "pulses",
        "duration_s",
        "onset_s",
        "interphase_us",
    }
    for key in set(stimulus) - known:
        raise ConfigError(f"stimulus.{key} is not a field of a pulse train; write one of {', '.join(sorted(known))}.")
    train = {key: value for key, value in stimulus.items() if key not in ("contacts", "duration_s")}
    contacts = stimulus.get("contacts")
    if contacts is None:
        if "contacts" not in specs:
            raise ConfigError(
                "stimulus.contacts is missing; name a contact or pair, or let 'contacts' vary in the space."
            )
        contacts = montage.contacts[0].name
    if "duration_s" in stimulus:
        if "pulses" in stimulus:
            raise ConfigError("stimulus has both pulses and duration_s; one fixes the other, so give one.")
        train["pulses"] = max(1, round(float(stimulus["duration_s"]) * float(train.get("frequency_hz", 1.0))))
    return pulse_train(montage, str(contacts), **{"amplitude_ma": 1.0, **train})


def _parameter_of(name: str, spec: ParameterSpec, template: Stimulus) -> Parameter:
    if name == "contacts":
        pairs = template.montage.neighbour_pairs() if spec.choices in (None, "neighbours") else spec.choices
        return contact_site(template, [str(pair) for pair in pairs or ()])
    try:
        if spec.choices is not None:
            kind = "ordinal" if spec.kind == "continuous" else spec.kind
            return Parameter(name, kind, choices=_numbers(name, spec.choices), unit=canonical_unit(name))
        if spec.low is None or spec.high is None:
            raise SpaceError("needs low and high, or choices")
        low, high = quantity(name, spec.low), quantity(name, spec.high)
        return Parameter(name, spec.kind, low, high, unit=canonical_unit(name))
    except (SpaceError, ValueError) as error:
        raise ConfigError(f"space.{name}: {error}") from error


def _numbers(name: str, choices: Sequence[float | str] | str) -> tuple[float, ...]:
    if isinstance(choices, str):
        raise SpaceError(f"choices {choices!r} is meant for contacts; list numbers")
    return tuple(quantity(name, choice) for choice in choices)


def _envelope_of(spec: EnvelopeSpec, montage: Montage) -> Envelope:
    for name in spec.forbidden:
        montage.contact_index(name)
    limits = {name: quantity(name, value) for name, value in spec.limits.items()}
    return PROFILES[spec.profile].with_limits(**limits).forbidding(*spec.forbidden)


def _tupled(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
