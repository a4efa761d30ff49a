"""What sources in tissue let be read, step by step: plainly, and with a hand-made gradient for searches.

Both play the circuits of `ieeg_sources`. The plain one says what a step is, and is differentiable in everything, as
often and in whichever direction. A search plays the same steps hundreds of times and wants one gradient backwards:
`QuickCourse` keeps what that needs in five blocks of memory, with the populations first so that one product couples
all sources of a circuit, takes tanh d as 2 / (1 + exp(-2 d)) - 1, which costs a third, and leaves out what pulses would
do in steps that have none. On one core a step and its gradient take about a third of the plain ones' time (measured in
tests/benchmarks/test_ieeg_speed.py); compiling the plain step, or laying it out anew, gave 1.4 at most.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Play = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor], Tensor, Tensor, float], Tensor]
"""Either of the two below."""


def course(
    both: Mapping[str, Tensor], own: Mapping[str, Tensor], shared: Mapping[str, Tensor],
    arriving: Float[Tensor, "circuit row source"], pulses: Float[Tensor, "circuit row step"], step_hz: float,
) -> Float[Tensor, "circuit row source step"]:  # fmt: skip
    """What each source lets be read at the ends of steps; a step is exact for a drive that stays.

    Args:
        both: Numbers that are shared, with what is a circuit's own added where it has its own.
        own: Those that are a circuit's own.
        shared: Those that all circuits have.
        arriving: What a pulse brings to each source.
        pulses: Delivered in each step.
        step_hz: Steps per second.
    """
    late, early, still = (factor.unsqueeze(1) for factor in _factors(both, step_hz))
    bias, size = both["bias"].unsqueeze(1), own["size"].exp().unsqueeze(1)
    hears = arriving.unsqueeze(-1) * both["hearing"][:, None, None]
    linear, quiet, coupling = shared["past_bound"] * hears, bias.tanh(), both["coupling"].unsqueeze(1)
    reading = both["reading"][:, None, :, None]
    state = speed = torch.zeros_like(hears)  # the speed in units of the population's own rate
    read = []
    for pulse in pulses.unbind(-1):
        now = pulse[..., None, None]
        sent = (state @ shared["sending"]) @ own["tie"]
        drive = state @ coupling + sent.unsqueeze(-1) * shared["listening"] + bias
        between = drive.tanh()
        away = state - size * (between - quiet) - now * (linear + size * ((drive + hears).tanh() - between))
        state, speed = state - away + late * away + early * speed, still * speed - early * away
        read.append((state @ reading).squeeze(-1))
    return torch.stack(read, -1)


class QuickCourse:
    """As `course`, to rounding, for one gradient backwards in everything but the pulses, see above.

    Memory is kept from one call to the next, which asking for anew would cost as much as the steps; so a call's
    gradient must be asked for before the next call, and PyTorch says so where it is not.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, ...] = ()

    def __call__(
        self, both: Mapping[str, Tensor], own: Mapping[str, Tensor], shared: Mapping[str, Tensor],
        arriving: Float[Tensor, "circuit row source"], pulses: Float[Tensor, "circuit row step"], step_hz: float,
    ) -> Float[Tensor, "circuit row source step"]:  # fmt: skip
        """See `course`."""
        late, early, still = (factor.mT.unsqueeze(-1) for factor in _factors(both, step_hz))
        hears = both["hearing"][:, :, None, None] * arriving.unsqueeze(1)
        numbers = (
            hears, shared["past_bound"][:, None, None] * hears, late - 1, early, still,
            both["bias"].mT.unsqueeze(2), own["size"].exp().mT.unsqueeze(2), both["coupling"].mT, shared["sending"],
            own["tie"], shared["listening"], both["reading"],
        )  # fmt: skip
        memory = self._memory(hears, pulses.shape[-1])
        read: Tensor = _Played.apply(memory, pulses.detach(), *numbers)  # type: ignore[no-untyped-call]
        return read.permute(1, 2, 3, 0)

    def _memory(self, field: Float[Tensor, "circuit population row source"], steps: int) -> tuple[Tensor, ...]:
        """What is felt and speeds, before each step and after the last; and what steps had away, and two sigmoids."""
        circuits, populations, *rest = field.shape
        felt = (steps + 1, circuits, populations + 1, *rest)
        like = self._kept[0] if self._kept else None
        if like is None or (like.shape, like.dtype, like.device) != (felt, field.dtype, field.device):
            whole = [(steps + 1, *field.shape), *[(steps, *field.shape)] * 3]
            self._kept = tuple(field.new_empty(shape) for shape in (felt, *whole))
        return self._kept


def _factors(both: Mapping[str, Tensor], step_hz: float) -> tuple[Tensor, Tensor, Tensor]:
    """How much of a departure, and of a speed, is left after a step of a critically damped population."""
    rate = both["rate"].exp() / step_hz  # [circuit, 1, population]
    kept = (-rate).exp()
    return kept * (1 + rate), kept * rate, kept * (1 - rate)


class _Played(torch.autograd.Function):
    """Steps of all circuits. Fields are `[circuit, population, row, source]`; symbols as in `ieeg_sources`.

    States are kept with what arrives from other sources as a further population, which is felt as others are.
    """

    @staticmethod
    def forward(
        ctx: Any, memory: tuple[Tensor, ...], pulses: Tensor, *numbers: Tensor
    ) -> Float[Tensor, "step circuit row source"]:
        hears, linear, later, early, still, bias, size, coupling, sending, tie, listening, reading = numbers
        circuits, populations, rows, count = hears.shape
        length, flat = pulses.shape[-1], (circuits, -1, rows * count)
        felt, speed, away, resting, driven = memory  # the last two: sigmoids of twice the drive
        felt[0], speed[0] = 0.0, 0.0
        told = hears.new_zeros(length + 1, circuits, 2, rows, count)  # what is read, and what is sent
        telling = torch.stack([reading, sending.expand_as(reading)], 1)
        feeling = 2 * torch.cat([coupling, listening.expand_as(reading).unsqueeze(-1)], -1)
        twice, doubled = (2 * bias).expand_as(hears).contiguous(), 2 * hears
        size = (2 * size).expand_as(hears).contiguous()
        quiet, drive = size * twice.sigmoid(), torch.empty_like(hears)
        beats = pulses.flatten(0, 1).ne(0).any(0).tolist()
        for step in range(length):
            old, now = felt[step, :, :populations], pulses[:, None, :, None, step]
            torch.bmm(told[step, :, 1], tie, out=felt[step, :, populations])
            torch.bmm(feeling, felt[step].view(flat), out=drive.view(flat))
            torch.sigmoid(drive.add_(twice), out=resting[step])
            left = torch.add(old, quiet, out=away[step])
            if beats[step]:
                torch.sigmoid(drive.add_(doubled), out=driven[step])
                left.addcmul_(size, torch.lerp(resting[step], driven[step], now), value=-1)
                left.addcmul_(now, linear, value=-1)
            else:
                left.addcmul_(size, resting[step], value=-1)
            state = torch.mul(early, speed[step], out=felt[step + 1, :, :populations]).add_(old).addcmul_(later, left)
            torch.mul(still, speed[step], out=speed[step + 1]).addcmul_(early, left, value=-1)
            torch.bmm(telling, state.view(flat), out=told[step + 1].view(flat))
        ctx.save_for_backward(pulses, *numbers, felt, speed, away, resting, driven, told)
        ctx.beats = beats
        return told[1:, :, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wanted: Float[Tensor, "step circuit row source"]) -> tuple[Tensor | None, ...]:
        pulses, *numbers, felt, speed, away, resting, driven, told = ctx.saved_tensors
        hears, _, later, early, still, bias, size, coupling, sending, tie, listening, reading = numbers
        circuits, populations, rows, count = hears.shape
        flat = (circuits, -1, rows * count)
        feeling = 2 * torch.cat([coupling, listening.expand_as(reading).unsqueeze(-1)], -1)
        size = (2 * size).expand_as(hears).contiguous()
        of_state, of_speed = torch.zeros_like(hears), torch.zeros_like(hears)
        of_hears, of_linear, of_drive, of_away, of_size, of_later, of_early, of_still = (
            torch.zeros_like(hears) for _ in range(8)
        )
        # drives, what is sent and what was read before, by what is felt
        giving = hears.new_zeros(circuits, populations + 2, rows, count)
        drives, of_sent = giving[:, :populations], giving[:, populations]
        met, of_tie = hears.new_zeros(circuits, populations + 2, populations + 1), torch.zeros_like(tie)
        of_last = torch.bmm(felt[-1, :, :populations].view(flat), wanted[-1].reshape(circuits, -1, 1))
        for step in range(len(wanted) - 1, -1, -1):
            now, rest, mixed = pulses[:, None, :, None, step], resting[step], resting[step]
            of_state.addcmul_(reading[:, :, None, None], wanted[step].unsqueeze(1))
            of_later.addcmul_(of_state, away[step])
            of_early.addcmul_(of_state, speed[step]).addcmul_(of_speed, away[step], value=-1)
            of_still.addcmul_(of_speed, speed[step])
            back = (later * of_state).addcmul_(early, of_speed, value=-1)  # of what is away
            of_speed.mul_(still).addcmul_(early, of_state)
            of_state.add_(back)
            of_away.add_(back)
            fall = size * back  # of the mixed sigmoid, with the sign turned
            torch.addcmul(rest, rest, rest, value=-1, out=drives)
            if ctx.beats[step]:
                beat = driven[step]
                mixed = torch.lerp(rest, beat, now)
                of_linear.addcmul_(now, back, value=-1)
                shaken = torch.addcmul(beat, beat, beat, value=-1).mul_(now).mul_(fall)
                of_hears.sub_(shaken)
                drives.mul_(fall.addcmul_(now, fall, value=-1)).add_(shaken).neg_()
            else:
                drives.mul_(fall).neg_()
            of_size.addcmul_(back, mixed, value=-1)
            of_drive.add_(drives)
            of_felt = torch.bmm(feeling.mT, drives.reshape(flat)).view(circuits, -1, rows, count)
            of_tie.baddbmm_(told[step, :, 1].mT, of_felt[:, populations])
            torch.bmm(of_felt[:, populations], tie.mT, out=of_sent)
            giving[:, -1] = wanted[step - 1] if step else 0.0
            met.baddbmm_(giving.view(flat), felt[step].view(flat).mT)
            of_state.add_(of_felt[:, :populations]).addcmul_(sending[:, None, None], of_sent.unsqueeze(1))
        share = (2 * bias).sigmoid()
        of_bias = 2 * (of_drive + of_away * size * share * (1 - share)).sum(2, keepdim=True)
        of_size = 2 * (of_size + of_away * share).sum(2, keepdim=True)
        rates = (x.sum((2, 3), keepdim=True) for x in (of_later, of_early, of_still))
        of_coupling, of_listening = 2 * met[:, :populations, :-1], 2 * met[:, :populations, -1].sum(0)
        of_sending, of_reading = met[:, populations, :-1].sum(0), met[:, -1, :-1] + of_last.squeeze(-1)
        return (
            None, None, 2 * of_hears, of_linear, *rates, of_bias, of_size, of_coupling, of_sending, of_tie,
            of_listening, of_reading,
        )  # fmt: skip
