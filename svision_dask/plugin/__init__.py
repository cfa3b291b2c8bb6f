"""A widget for napari (extra ``napari``): a layer enhanced, as a new layer in the same place."""
