"""Parameter servers: the architecture, shards that step, threads that serve them, and clients that ask.

Import from the modules: members need no torch, and what runs them does.
"""
