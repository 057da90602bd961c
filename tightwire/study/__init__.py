"""Experiments on emulated clusters, and their reports."""
