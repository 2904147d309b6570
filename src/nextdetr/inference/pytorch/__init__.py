"""Detectors as networks of torch, behind the same door as exported files; no other file of ``inference`` imports torch."""
