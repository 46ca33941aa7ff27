"""The training loop, and the folders, devices and processes of a run."""
