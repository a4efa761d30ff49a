"""The simulators of stimopt; see the files beside this one."""

if __name__ != "stimopt.simulators":
    raise ImportError(
        "import stimopt.simulators, not simulators: the bare name would make a second copy of every class"
    )

from .actuator import (
    Actuator,
)
from .amplifier import (
    CommonAverage,
    Delay,
    LostContacts,
    Part,
    SensedWindow,
    StatefulPart,
    lost_channels,
)
from .artefact import (
    Artefact,
    artefact_coupling,
)
from .band import (
    Band,
)
from .basal_ganglia import (
    BasalGanglia,
    scattered_cells,
)
from .basal_ganglia_currents import (
    PallidalCell,
    SubthalamicCell,
    ThalamicCell,
)
from .bold import (
    Balloon,
    BoldSignal,
    ClassicalSignal,
    RevisedSignal,
    power_activity,
)
from .card import (
    parameter_hash,
)
from .circuit_patients import (
    hopf_patient,
    kuramoto_patient,
    montbrio_patient,
    wilson_cowan_patient,
)
from .cohort import (
    cohort,
    jansen_rit_patient,
    linear_patient,
)
from .connectome import (
    Connectome,
    ball_connectome,
    exponential_distance_connectome,
    perturbed,
    read_connectome,
    without_regions,
    without_tracts,
)
from .corticothalamic import (
    CorticothalamicWeights,
    FieldPopulations,
    corticothalamic,
)
from .delays import (
    Past,
    past_of_states,
    still_past,
)
from .drive import (
    PointSourceDrive,
    point_source_drive,
    point_source_potential,
    pulse_shares,
    train_shares,
)
from .dynamics import (
    Drive,
    Dynamics,
    Emission,
    Parameter,
    Potential,
    State,
)
from .entry import (
    Entry,
)
from .epileptor import (
    Epileptor,
    coupling_entry,
)
from .error_index import (
    RelayErrors,
    error_index,
    pulse_current,
    regular_pulses,
    relay_errors,
    sensorimotor_pulses,
    spike_times,
)
from .hopf import (
    StuartLandau,
)
from .implanted import (
    implanted,
)
from .implants import (
    DBS_LEAD,
    ECOG_STRIP,
    SEEG_SHAFT,
    ElectrodeModel,
    implant,
    two_shafts,
)
from .integrate import (
    ExponentialEuler,
    euler,
    exponential_euler,
    heun,
    rk4,
    stage_drive,
)
from .interference import (
    Background,
    LineNoise,
    WhiteNoise,
)
from .jansen_rit import (
    JansenRit,
)
from .joined import (
    Joined,
)
from .kuramoto import (
    Kuramoto,
    kuramoto_network,
    order_parameter,
    sine_entry,
)
from .kuramoto_grid import (
    kuramoto_grid,
)
from .lead_field import (
    average_reference,
    dipole_lead_field,
    distance_lead_field,
    monopole_lead_field,
    read_lead_field,
)
from .linear import (
    ExactStep,
    LinearOscillator,
    exact_step,
    system_matrices,
)
from .mean_field import (
    MeanField,
    factored,
    mean_of_all,
)
from .montbrio import (
    MontbrioPazoRoxin,
)
from .network import (
    Network,
)
from .nuclei_patients import (
    basal_ganglia_patient,
    corticothalamic_patient,
    relaxation_patient,
    stn_gpe_patient,
)
from .patient import (
    Anatomy,
    VirtualPatient,
    load_patient,
)
from .population import (
    JANSEN_RIT_RANGES,
    Population,
    Range,
)
from .populations import (
    POPULATIONS,
    at_the_bedside,
)
from .rails import (
    Saturation,
    SoftSaturation,
)
from .recordings import (
    PairedWindow,
)
from .relaxation_ensemble import (
    Feedback,
    RelaxationOscillator,
    kicked_feedback,
    relaxation_ensemble,
)
from .seizure_patients import (
    epileptor_patient,
    wendling_patient,
)
from .senses import (
    Pathway,
    Senses,
    declare_senses,
)
from .sensing import (
    Sensing,
    clinical_amplifier,
    distance_sensing,
    lead_field_sensing,
)
from .simulate import (
    Trajectory,
    simulate,
    white_waves,
)
from .single_pulses import (
    MAYO,
    UTRECHT,
    Protocol,
    PulseSchedule,
    single_pulse_schedule,
)
from .step_check import (
    half_step_error,
    require_step,
)
from .stn_gpe import (
    RateNuclei,
    StnGpeWeights,
    stn_gpe,
    with_feedback,
)
from .twin import (
    Twin,
)
from .vigilance import (
    Vigilance,
)
from .wendling import (
    Wendling,
)
from .wilson_cowan import (
    WilsonCowan,
)

__all__ = [
    "DBS_LEAD",
    "ECOG_STRIP",
    "JANSEN_RIT_RANGES",
    "MAYO",
    "POPULATIONS",
    "SEEG_SHAFT",
    "UTRECHT",
    "Actuator",
    "Anatomy",
    "Artefact",
    "Background",
    "Balloon",
    "Band",
    "BasalGanglia",
    "BoldSignal",
    "ClassicalSignal",
    "CommonAverage",
    "Connectome",
    "CorticothalamicWeights",
    "Delay",
    "Drive",
    "Dynamics",
    "ElectrodeModel",
    "Emission",
    "Entry",
    "Epileptor",
    "ExactStep",
    "ExponentialEuler",
    "Feedback",
    "FieldPopulations",
    "JansenRit",
    "Joined",
    "Kuramoto",
    "LineNoise",
    "LinearOscillator",
    "LostContacts",
    "MeanField",
    "MontbrioPazoRoxin",
    "Network",
    "PairedWindow",
    "PallidalCell",
    "Parameter",
    "Part",
    "Past",
    "Pathway",
    "PointSourceDrive",
    "Population",
    "Potential",
    "Protocol",
    "PulseSchedule",
    "Range",
    "RateNuclei",
    "RelaxationOscillator",
    "RelayErrors",
    "RevisedSignal",
    "Saturation",
    "SensedWindow",
    "Senses",
    "Sensing",
    "SoftSaturation",
    "State",
    "StatefulPart",
    "StnGpeWeights",
    "StuartLandau",
    "SubthalamicCell",
    "ThalamicCell",
    "Trajectory",
    "Twin",
    "Vigilance",
    "VirtualPatient",
    "Wendling",
    "WhiteNoise",
    "WilsonCowan",
    "artefact_coupling",
    "at_the_bedside",
    "average_reference",
    "ball_connectome",
    "basal_ganglia_patient",
    "clinical_amplifier",
    "cohort",
    "corticothalamic",
    "corticothalamic_patient",
    "coupling_entry",
    "declare_senses",
    "dipole_lead_field",
    "distance_lead_field",
    "distance_sensing",
    "epileptor_patient",
    "error_index",
    "euler",
    "exact_step",
    "exponential_distance_connectome",
    "exponential_euler",
    "factored",
    "half_step_error",
    "heun",
    "hopf_patient",
    "implant",
    "implanted",
    "jansen_rit_patient",
    "kicked_feedback",
    "kuramoto_grid",
    "kuramoto_network",
    "kuramoto_patient",
    "lead_field_sensing",
    "linear_patient",
    "load_patient",
    "lost_channels",
    "mean_of_all",
    "monopole_lead_field",
    "montbrio_patient",
    "order_parameter",
    "parameter_hash",
    "past_of_states",
    "perturbed",
    "point_source_drive",
    "point_source_potential",
    "power_activity",
    "pulse_current",
    "pulse_shares",
    "read_connectome",
    "read_lead_field",
    "regular_pulses",
    "relaxation_ensemble",
    "relaxation_patient",
    "relay_errors",
    "require_step",
    "rk4",
    "scattered_cells",
    "sensorimotor_pulses",
    "simulate",
    "sine_entry",
    "single_pulse_schedule",
    "spike_times",
    "stage_drive",
    "still_past",
    "stn_gpe",
    "stn_gpe_patient",
    "system_matrices",
    "train_shares",
    "two_shafts",
    "wendling_patient",
    "white_waves",
    "wilson_cowan_patient",
    "with_feedback",
    "without_regions",
    "without_tracts",
]
