"""One file per format version."""
