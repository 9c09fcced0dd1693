"""Masked image modeling in JAX: base methods and papers as parts that compose."""

__version__ = '0.1.0'
