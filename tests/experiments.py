"""Experiment and study files that the tests begin from: small and quick."""

EXPERIMENT = """\
name: quiet-alpha
seed: 4
system: {name: linear, patient: 2}
stimulus: {pulse_width_us: 200 us, duration_s: 0.3 s, frequency_hz: 40 Hz}
space:
  contacts: {choices: neighbours}
  amplitude_ma: {low: 0.5 mA, high: 5 mA}
  frequency_hz: {kind: log, low: 5 Hz, high: 100 Hz}
envelope: {profile: mapping-50hz-seeg}
objective: {name: band-power, band_hz: [8, 30], better: lower}
policy: {name: sobol}
trials: 8
interval_s: 10 s
"""

STUDY = """\
name: first
system: {name: linear}
patients: [0, 1, 2]
stimulus: {pulse_width_us: 200, duration_s: 0.3, frequency_hz: 40}
space:
  contacts: {choices: neighbours}
  amplitude_ma: {low: 0.5 mA, high: 5 mA}
envelope: {profile: mapping-50hz-seeg}
objective: {name: band-power, band_hz: [8, 30], better: lower}
policies: [{name: sobol}]
seeds: 1
trials: 3
interval_s: 10
truth_points: 16
truth_repeats: 2
"""

LIVE = """\
name: bedside
seed: 2
montage:
  contacts:
    - {name: A1, area_cm2: 0.05, kind: depth, shaft: A}
    - {name: A2, area_cm2: 0.05, kind: depth, shaft: A}
    - {name: A3, area_cm2: 0.05, kind: depth, shaft: A}
stimulus: {pulse_width_us: 200, frequency_hz: 1, pulses: 1}
space:
  contacts: {choices: [A1-A2, A2-A3]}
  amplitude_ma: {low: 1 mA, high: 6 mA}
envelope: {profile: spes-seeg, forbidden: [A3]}
objective: {name: evoked-amplitude, between_s: [0.01, 0.3]}
policy: {name: random}
trials: 4
"""
