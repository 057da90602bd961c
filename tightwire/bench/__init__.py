"""Measurements against the stock alternative and the physical bound."""
