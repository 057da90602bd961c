"""The main job on this machine: stock DDP against the chosen plans."""
