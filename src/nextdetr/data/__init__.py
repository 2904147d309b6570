"""Readers, augmentation and loading."""
