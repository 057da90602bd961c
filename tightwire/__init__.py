"""Tightwire."""
