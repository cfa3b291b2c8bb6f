"""What a result is worth: figures, seams, the report, the viewer, and whether an OME-Zarr is valid."""
