"""One family of errors: what came, what is allowed, what to do.

Every error a user can cause is a `StimoptError`, and also the built-in error
(`ValueError`, `TypeError`, `RuntimeError`) that a caller would expect, so both
habits of catching work. The command line prints the message and exits with 2.
"""


class StimoptError(Exception):
    """Anything stimopt refuses, said in one sentence that ends with the way out."""


class UnitError(StimoptError, ValueError):
    """A quantity came without a unit, in a wrong one, or in one of another dimension."""


class ShapeError(StimoptError, ValueError):
    """A tensor's axes do not agree with the montage or with each other."""


class MontageError(StimoptError, ValueError):
    """A contact or channel is unknown, doubled or badly described."""


class StimulusError(StimoptError, ValueError):
    """A stimulus that no device could deliver: negative width, overlapping pulses."""


class SpaceError(StimoptError, ValueError):
    """A stimulation space is badly bounded, or a value lies outside it."""


class BandError(StimoptError, ValueError):
    """Band edges are not ordered or pass the Nyquist limit."""


class EnvelopeError(StimoptError, ValueError):
    """A stimulus lies outside the safety envelope; `limit` names the limit that binds."""

    def __init__(self, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class NotRecordedError(StimoptError, ValueError):
    """A replay was asked for a stimulus that nobody recorded, or whose repetitions are used up."""


class ConfigError(StimoptError, ValueError):
    """An experiment or study file has a wrong key, name, unit or bound."""


class DataError(StimoptError, ValueError):
    """A file is missing, truncated, fails its checksum, or holds impossible values."""


class CheckpointError(StimoptError, ValueError):
    """A saved model does not match what it claims to be."""


class RunError(StimoptError, RuntimeError):
    """A run's folder is in a state that forbids the step asked for."""


class SessionLockedError(RunError):
    """A stop rule ended this session; it will deliver nothing more."""


class ContractError(StimoptError, AssertionError):
    """An implementation breaks a clause of its contract (raised by `stimopt.testing`)."""
