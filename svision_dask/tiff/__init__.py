"""TIFF: one file, many, or folders of planes, read lazily as one volume."""
