"""Closed-loop stimulation modelling and optimisation for intracranial EEG."""

__version__ = "0.1.0"
