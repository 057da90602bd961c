"""Predictions held to measurements: published ones, closed forms, and this machine's lab."""

from tightwire.validate.table import Point, Table

__all__ = ["Point", "Table"]
