"""The simulators of stimopt; see the files beside this one."""

if __name__ != "stimopt.simulators":
    raise ImportError(
        "import stimopt.simulators, not simulators: the bare name would make a second copy of every class"
    )

from .cohort import jansen_rit_patient, linear_patient, two_shafts
from .connectome import Connectome, ball_connectome, exponential_distance_connectome, read_connectome
from .delays import Past, past_of_states, still_past
from .drive import PointSourceDrive, point_source_drive, point_source_potential
from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State
from .integrate import ExponentialEuler, euler, exponential_euler, heun, rk4, stage_drive
from .jansen_rit import JansenRit
from .linear import ExactStep, LinearOscillator, exact_step, system_matrices
from .network import Network
from .sensing import Sensing, distance_sensing
from .simulate import Trajectory, simulate, white_waves
from .twin import Twin

__all__ = [
    "Connectome",
    "Drive",
    "Dynamics",
    "Emission",
    "ExactStep",
    "ExponentialEuler",
    "JansenRit",
    "LinearOscillator",
    "Network",
    "Parameter",
    "Past",
    "PointSourceDrive",
    "Potential",
    "Sensing",
    "State",
    "Trajectory",
    "Twin",
    "ball_connectome",
    "distance_sensing",
    "euler",
    "exact_step",
    "exponential_distance_connectome",
    "exponential_euler",
    "heun",
    "jansen_rit_patient",
    "linear_patient",
    "past_of_states",
    "point_source_drive",
    "point_source_potential",
    "read_connectome",
    "rk4",
    "simulate",
    "stage_drive",
    "still_past",
    "system_matrices",
    "two_shafts",
    "white_waves",
]
