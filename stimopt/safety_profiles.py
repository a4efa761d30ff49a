"""Safety profiles per protocol and device: data only, each limit with value, unit and source.

| name | for | what bounds the charge |
| --- | --- | --- |
| dbs-chronic | chronic deep brain stimulation leads | 30 uC/cm2 and Shannon k 1.75 |
| rns | responsive neurostimulation, depth or strip | 25 uC/cm2 and Shannon k 1.75 |
| spes-seeg | single pulses on sEEG | charge per phase; density and k only give caution |
| mapping-50hz-subdural | 50 Hz functional mapping on discs | 57 uC/cm2 |
| mapping-50hz-seeg | 50 Hz functional mapping on sEEG | charge per phase; density and k only give caution |
| microstimulation | penetrating microelectrodes | 4 nC per phase |

A source that begins with "recalled, check" was not read again for this project. A source that begins with
"derived" is arithmetic on limits with a source. Where nobody has established a figure the limit is NOT EVALUATED
and says so; `Envelope.with_limits` sets one. These figures are starting points for a person who is responsible,
not clearance for use.
"""

from collections.abc import Mapping
from types import MappingProxyType

from .safety import Envelope
from .safety_limits import LIMITS, Limit, not_evaluated

_ACNS = "ACNS technical standard 2025, J Clin Neurophysiol 42:190-200"
_ACNS_DEPTH = f"{_ACNS}: no limit is established for stereotactic depth electrodes"
_VERCISE = "Boston Scientific Vercise DBS programming manual 91053785"
_SURVEY = "survey of 56 SEEG clinicians, Epilepsia Open 2023 (PMC10472359)"
_SHANNON = "Shannon 1992, IEEE Trans Biomed Eng 39:424"
_SHANNON_DATA = "his data are 50 Hz, 400 us, 7 to 8 h without a pause, on discs of 1 mm2 and more"
_SHANNON_USE = f"{_SHANNON}: 1.5 shows no damage, 1.85 the least with damage; 1.75 in common use"
_LEAST_K = "caution from the least k with damage"
_COGAN = "Cogan et al. 2016, J Neural Eng 13:021001"
_AES_RNS = "AES 2015 abstract 3.085: symmetric biphasic, 0-12 mA, 1-333 Hz, 40-1000 us"
_REN = "Ren et al. 2017, Neural Regen Res 12:938: 5, 50 and 100 Hz brief pulses"

_BALANCE = Limit("net_charge_uc", 1e-6, "uC", "definition: both phases carry the same charge; 1 pC is rounding")
_APART = Limit("train_share", 1.0, "", "definition: a train is over before the next one begins")


def _limit(name: str, value: float, source: str, caution: float | None = None) -> Limit:
    return Limit(name, value, LIMITS[name][0], source, caution)


def _unset(*names: str) -> tuple[Limit, ...]:
    reason = "no figure is established; the responsible person sets one"
    return tuple(not_evaluated(name, reason, "none") for name in names)


def chronic_dbs() -> Envelope:
    """Chronic DBS leads: rings and segments of platinum-iridium, months of continuous trains."""
    limits = (
        _limit("contact_current_ma", 12.7, f"{_VERCISE}: 12.7 mA per contact"),
        _limit("total_current_ma", 20.0, f"{_VERCISE}: 20 mA per area of stimulation"),
        _limit("pulse_width_min_us", 10.0, f"{_VERCISE}: 10-450 us, safety shown from 60 us", caution=60.0),
        _limit("pulse_width_max_us", 450.0, f"{_VERCISE}: 10-450 us"),
        _limit("frequency_min_hz", 2.0, f"{_VERCISE}: 2-255 Hz"),
        _limit("frequency_max_hz", 255.0, f"{_VERCISE}: 2-255 Hz, established to 250 Hz", caution=250.1),
        _limit(
            "charge_density_uc_cm2",
            30.0,
            f"{_VERCISE}: warning at 30 uC/cm2 per phase; {_COGAN}: condition of the first approval",
        ),
        _limit(
            "shannon_k",
            1.75,
            f"{_SHANNON}: 1.5 shows no damage, 1.85 the least with damage; 1.75 in common use",
            caution=1.5,
        ),
        _limit("phase_charge_uc", 1.8, "derived: 30 uC/cm2 on 0.06 cm2, for contacts of unknown area"),
        _BALANCE,
        _APART,
        *_unset("ramp_ma", "duty_cycle", "dose_minute_uc", "dose_hour_uc", "interval_s"),
    )
    return Envelope("dbs-chronic", "Chronic deep brain stimulation leads", limits, ("dbs",))


def rns() -> Envelope:
    """Responsive neurostimulation: bursts at depth or strip leads."""
    limits = (
        _limit("contact_current_ma", 12.0, _AES_RNS),
        _limit("total_current_ma", 12.0, _AES_RNS),
        _limit("pulse_width_min_us", 40.0, _AES_RNS),
        _limit("pulse_width_max_us", 1000.0, _AES_RNS),
        _limit("frequency_min_hz", 1.0, _AES_RNS),
        _limit("frequency_max_hz", 333.4, f"{_AES_RNS} (333.3 Hz is a period of 3 ms)"),
        _limit("train_s", 5.0, "recalled, check: RNS System manual, burst 10-5000 ms"),
        _limit("charge_density_uc_cm2", 25.0, "recalled, check: RNS System manual, warns at 25 uC/cm2"),
        _limit("shannon_k", 1.75, _SHANNON_USE, caution=1.5),
        _limit("phase_charge_uc", 2.0, "derived: 25 uC/cm2 on 0.08 cm2, for contacts of unknown area"),
        _BALANCE,
        _APART,
        *_unset("ramp_ma", "duty_cycle", "dose_minute_uc", "dose_hour_uc", "interval_s"),
    )  # fmt: skip
    return Envelope("rns", "Responsive neurostimulation, depth and cortical strip leads", limits, ("depth", "subdural"))


def spes_seeg() -> Envelope:
    """Single-pulse stimulation on sEEG, at most one pulse a second, as for cortico-cortical evoked potentials."""
    limits = (
        _limit("contact_current_ma", 10.0, f"{_SURVEY}: largest current at 1 Hz 3-10 mA", caution=8.0),
        _limit("total_current_ma", 10.0, f"{_SURVEY}: largest current at 1 Hz 3-10 mA"),
        _limit("pulse_width_min_us", 100.0, "Hays et al. 2023, Brain Stimul 16:772: 7.5 mA for 0.75 uC is 100 us"),
        _limit("pulse_width_max_us", 1000.0, "Hays et al. 2023, Brain Stimul 16:772: 1.5 mA for 1.5 uC is 1 ms"),
        _limit("frequency_max_hz", 1.0, f"{_ACNS}: 1 Hz"),
        _limit("train_s", 30.0, f"{_ACNS}: 1 Hz trains up to 30 s"),
        _limit("phase_charge_uc", 5.0, "recalled, check: 5 mA for 1 ms, in routine use on sEEG"),
        not_evaluated("charge_density_uc_cm2", "no limit is established for depth electrodes; caution from "
                      "the 55 uC/cm2 that the survey names as recommended", f"{_ACNS_DEPTH}; {_SURVEY}", caution=55.0),
        not_evaluated("shannon_k", f"{_SHANNON_DATA}, not single pulses on cylinders; {_LEAST_K}",
                      _SHANNON, caution=1.85),
        _BALANCE,
        _APART,
        _limit("interval_s", 1.0, f"{_ACNS}: 1 Hz"),
        _limit("dose_minute_uc", 300.0, "derived: 60 pulses of 5 uC, at 1 Hz"),
        *_unset("ramp_ma", "dose_hour_uc"),
    )  # fmt: skip
    return Envelope("spes-seeg", "Single-pulse stimulation on sEEG depth electrodes", limits, ("depth",))


def mapping_50hz_subdural() -> Envelope:
    """50 Hz functional mapping on subdural discs."""
    limits = (
        _limit("contact_current_ma", 20.0, f"{_ACNS}: 1-20 mA"),
        _limit("total_current_ma", 20.0, f"{_ACNS}: 1-20 mA"),
        _limit("pulse_width_min_us", 200.0, f"{_ACNS}: 200-300 us"),
        _limit("pulse_width_max_us", 300.0, f"{_ACNS}: 200-300 us"),
        _limit("frequency_min_hz", 5.0, _REN),
        _limit("frequency_max_hz", 100.0, f"{_ACNS}: 50 Hz; {_REN}", caution=60.1),
        _limit("train_s", 8.0, f"{_ACNS}: 2-8 s"),
        _limit("phase_charge_uc", 6.0, "derived: 20 mA for 300 us"),
        _limit("charge_density_uc_cm2", 57.0, f"{_ACNS}: at most 52-57 uC/cm2; Gordon et al. 1990", caution=52.0),
        not_evaluated("shannon_k", f"{_SHANNON_DATA}, not trains of seconds; {_LEAST_K}",
                      _SHANNON, caution=1.85),
        _BALANCE,
        _APART,
        *_unset("ramp_ma", "duty_cycle", "dose_minute_uc", "dose_hour_uc", "interval_s"),
    )  # fmt: skip
    return Envelope("mapping-50hz-subdural", "50 Hz functional mapping on subdural discs", limits, ("subdural",))


def mapping_50hz_seeg() -> Envelope:
    """50 Hz functional mapping on sEEG depth electrodes."""
    limits = (
        _limit("contact_current_ma", 10.0, f"{_ACNS}: 0.5-10 mA"),
        _limit("total_current_ma", 10.0, f"{_ACNS}: 0.5-10 mA"),
        _limit("pulse_width_min_us", 100.0, f"{_ACNS}: 100-500 us"),
        _limit("pulse_width_max_us", 500.0, f"{_ACNS}: 100-500 us"),
        _limit("frequency_min_hz", 1.0, f"{_ACNS}: 1 and 50 Hz"),
        _limit("frequency_max_hz", 100.0, f"{_ACNS}: 50 Hz; {_REN}", caution=60.1),
        _limit("train_s", 8.0, f"{_ACNS}: 2-8 s at 50 Hz"),
        _limit("phase_charge_uc", 5.0, "derived: 10 mA for 500 us"),
        not_evaluated("charge_density_uc_cm2", "no limit is established for depth electrodes; caution from "
                      "the lower figure for subdural ones", _ACNS_DEPTH, caution=52.0),
        not_evaluated("shannon_k", f"{_SHANNON_DATA}, not trains of seconds on cylinders; {_LEAST_K}",
                      _SHANNON, caution=1.85),
        _BALANCE,
        _APART,
        *_unset("ramp_ma", "duty_cycle", "dose_minute_uc", "dose_hour_uc", "interval_s"),
    )  # fmt: skip
    return Envelope("mapping-50hz-seeg", "50 Hz functional mapping on sEEG depth electrodes", limits, ("depth",))


def microstimulation() -> Envelope:
    """Penetrating microelectrodes, where charge per phase and not density tells damage."""
    limits = (
        _limit("contact_current_ma", 0.1, "recalled, check: Flesher et al. 2016, Sci Transl Med 8, 100 uA"),
        _limit("pulse_width_min_us", 40.0, "derived: 4 nC at 100 uA"),
        _limit("pulse_width_max_us", 400.0, "recalled, check: McCreery et al. 2010, J Neural Eng 7, 400 us"),
        _limit("frequency_max_hz", 300.0, "recalled, check: Hughes et al. 2021, eLife 10:e65128, 20-300 Hz"),
        _limit("train_s", 15.0, "recalled, check: human microstimulation studies keep trains below 15 s"),
        _limit("phase_charge_uc", 0.004, f"{_COGAN}: 4 nC, the threshold of damage", caution=0.002),
        not_evaluated("charge_density_uc_cm2", "microelectrodes exceed the densities of large ones unharmed", _COGAN),
        not_evaluated("shannon_k", "microelectrodes do not follow Shannon's relation", _COGAN),
        _BALANCE,
        _APART,
        *_unset("total_current_ma", "ramp_ma", "duty_cycle", "dose_minute_uc", "dose_hour_uc", "interval_s"),
    )  # fmt: skip
    return Envelope("microstimulation", "Penetrating microelectrodes in cortex", limits, ("micro",))


PROFILES: Mapping[str, Envelope] = MappingProxyType(
    {
        envelope.name: envelope
        for envelope in (
            chronic_dbs(),
            rns(),
            spes_seeg(),
            mapping_50hz_subdural(),
            mapping_50hz_seeg(),
            microstimulation(),
        )
    }
)
