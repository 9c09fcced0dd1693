"""Weights in and out: other libraries' names and layouts <-> our role paths. NumPy only; nothing here runs a model."""
