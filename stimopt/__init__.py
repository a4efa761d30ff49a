"""Closed-loop stimulation modelling and optimisation for intracranial EEG: fit, search inside a safety envelope, evaluate."""

__version__ = "0.1.0"
