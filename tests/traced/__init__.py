"""Training on the traced device, in a process of its own: torch has one such device, and then all tests would see it.

`pytest tests/traced --traced` runs these; `tests/devices/test_traced.py` does so for the suite.
"""
