"""Weights files of any origin: read without running anything, recognised, renamed and loaded."""
