"""Predictions held to measurements: closed forms, published ones, and this machine's lab."""

from tightwire.validate.table import Point, Table

__all__ = ["Point", "Table"]
