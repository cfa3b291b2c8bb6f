"""OME-Zarr: what its metadata says, its arrays, labels and pyramid, read and written."""
