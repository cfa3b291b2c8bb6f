"""From volume and model to a finished OME-Zarr: regions on a cluster, receipts, resume, verification."""
