"""A simulated two-photon volume, and the whole line shown on it."""
