"""Enhance the resolution of microscope volumes of any size, by self-supervision, from OME-Zarr to OME-Zarr."""
