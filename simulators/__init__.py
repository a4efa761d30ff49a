"""The simulators of stimopt; see the files beside this one."""

if __name__ != "stimopt.simulators":
    raise ImportError(
        "import stimopt.simulators, not simulators: the bare name would make a second copy of every class"
    )

from .cohort import jansen_rit_patient, linear_patient, two_shafts
from .connectome import Connectome, ball_connectome, exponential_distance_connectome, read_connectome
from .drive import PointSourceDrive, point_source_drive, point_source_potential
from .dynamics import Dynamics
from .integrate import euler, heun, rk4, stage_drive
from .jansen_rit import JansenRit
from .linear import ExactStep, LinearOscillator, exact_step, system_matrices
from .network import Network
from .sensing import Sensing, distance_sensing
from .twin import Twin

__all__ = [
    "Connectome",
    "Dynamics",
    "ExactStep",
    "JansenRit",
    "LinearOscillator",
    "Network",
    "PointSourceDrive",
    "Sensing",
    "Twin",
    "ball_connectome",
    "distance_sensing",
    "euler",
    "exact_step",
    "exponential_distance_connectome",
    "heun",
    "jansen_rit_patient",
    "linear_patient",
    "point_source_drive",
    "point_source_potential",
    "read_connectome",
    "rk4",
    "stage_drive",
    "system_matrices",
    "two_shafts",
]
