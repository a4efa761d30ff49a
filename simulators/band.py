"""The pass band of an amplifier: causal Butterworth filters that go on where the window before left them.

    H(z) = through + sum of residue / (z - pole)      over the poles of the filter
    y_n  = through x_n + sum of residue s_n,          s_(n+1) = pole s_n + x_n

A Butterworth filter's poles differ, so each has a state s of its own, and no digits are lost
between them, as they are in sections whose poles crowd near 1. Over a window all is linear,

    y = s free + (x * kernel)        the convolution by FFT, as long as the window, so nothing of it is cut off
    s' = s kept + x taken

and a constant m leaves its steady state alone, so the first sample is taken from the signal and
its steady state from s beforehand: an offset of millivolts costs little in single precision.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stimopt.errors import BandError
from stimopt.system import State
from stimopt.tensors import Signal

from .amplifier import SensedWindow, StatefulPart


@dataclass(frozen=True)
class Band(StatefulPart):
    """AC coupling and anti-aliasing filter, as causal as an amplifier's are.

    What was before a session's first window has to be guessed. The high-pass takes it that the signal had swung around
    that window's own mean, so a constant offset makes no transient and early samples know that one number of later
    ones; the low-pass takes it that the signal had stood at its first value.

    State   "high_pass", "low_pass"   [*batch, channel, state]   of the filters that there are

    Attributes:
        low_hz: High-pass edge, 3 dB down; None passes the offset.
        high_hz: Low-pass edge, 3 dB down; None passes everything up to half the sampling rate.
        order: Of each of the two filters.
    """

    low_hz: float | None = None
    high_hz: float | None = None
    order: int = 1

    def start(self, signal_uv: Signal, window: SensedWindow) -> State:
        """See StatefulPart. Raises as `continued`."""
        state: State = {}
        before = signal_uv.mean(-1)
        for name, band in self._filters(window.rate_hz, 1).items():
            before = before if name == "high_pass" else signal_uv[..., 0]
            state[name] = before.unsqueeze(-1) * band.steady.to(before)
            signal_uv, _ = _filtered(band, state[name], signal_uv[..., :1])  # what the next one sees first
        return state

    def continued(self, state: State, signal_uv: Signal, window: SensedWindow) -> tuple[Signal, State]:
        """See StatefulPart.

        Raises:
            BandError: If an edge is not between 0 and half the sampling rate, or the edges are not ordered.
        """
        after: State = {}
        for name, band in self._filters(window.rate_hz, signal_uv.shape[-1]).items():
            signal_uv, after[name] = _filtered(band, state[name], signal_uv)
        return signal_uv, after

    def _filters(self, rate_hz: float, samples: int) -> dict[str, "_Filter"]:
        named = {"high_pass": self.low_hz, "low_pass": self.high_hz}
        edges = {name: edge for name, edge in named.items() if edge is not None}
        inside = all(0 < edge < rate_hz / 2 for edge in edges.values())
        if not inside or sorted(set(edges.values())) != list(edges.values()):
            raise BandError(
                f"low_hz {self.low_hz} and high_hz {self.high_hz} must be ordered and lie between 0 and "
                f"{rate_hz / 2} Hz, half of rate_hz {rate_hz}; leave out the one that is not needed."
            )
        return {name: _filter(self.order, edge, name, rate_hz, samples) for name, edge in edges.items()}


class _Filter(NamedTuple):
    """A filter over a window of so many samples, as the linear map from state and signal to both; float64.

    A state is real and imaginary part of s at the poles on and above the real axis.
    """

    kernel: Float[Tensor, " time"]
    free: Float[Tensor, "state time"]
    kept: Float[Tensor, "state state"]
    taken: Float[Tensor, "time state"]
    steady: Float[Tensor, " state"]
    passed: float  # of a constant


def _filtered(
    band: _Filter, state: Float[Tensor, "*batch channel state"], signal_uv: Signal
) -> tuple[Signal, Float[Tensor, "*batch channel state"]]:
    """The signal after a filter, and the filter's state after the signal."""
    kernel, free, kept, taken, steady = (part.to(signal_uv) for part in band[:-1])
    first = signal_uv[..., :1]
    rest, moved = signal_uv - first, state - first * steady
    size = 2 * rest.shape[-1]  # room for the whole answer, so that its end does not wrap round to the start
    spectrum = torch.fft.rfft(kernel, n=size) * torch.fft.rfft(rest, n=size)
    driven = torch.fft.irfft(spectrum, n=size)[..., : rest.shape[-1]]
    return moved @ free + driven + band.passed * first, moved @ kept + rest @ taken + first * steady


@lru_cache(maxsize=64)
def _filter(order: int, edge_hz: float, name: str, rate_hz: float, samples: int) -> _Filter:
    """The Butterworth filter of that name, from its partial fractions."""
    from scipy.signal import butter  # here, since it is slow to import and only filters need it

    zeros, poles, through = butter(order, edge_hz, name.replace("_", ""), fs=rate_hz, output="zpk")
    others = np.array([np.delete(poles, place) for place in range(order)])  # [pole, other pole]
    residues = through * (poles[:, None] - zeros).prod(-1) / (poles[:, None] - others).prod(-1)
    upper = poles.imag >= 0
    weights = (np.where(poles.imag > 0, 2, 1) * residues)[upper, None]  # a pair adds twice its real part
    powers = poles[upper, None] ** np.arange(samples + 1)  # [pole, time]
    last = powers[:, samples]
    return _Filter(
        kernel=_tensor(np.concatenate([[through], (weights * powers[:, : samples - 1]).real.sum(0)])),
        free=_tensor(_parts((weights * powers[:, :samples]).conj())),  # whose product with s is a real part
        kept=_tensor(np.block([[np.diag(last.real), np.diag(last.imag)], [-np.diag(last.imag), np.diag(last.real)]])),
        taken=_tensor(_parts(powers[:, :samples][:, ::-1]).T),
        steady=_tensor(_parts(1 / (1 - poles[upper]))),
        passed=float(name == "low_pass"),
    )


def _parts(numbers: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Real parts, then imaginary parts, along the first axis."""
    return np.concatenate([numbers.real, numbers.imag])


def _tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
