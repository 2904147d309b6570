"""Layouts of weights files: how each is recognised, its licence, and its conversion to ours."""
