"""Models, and how they are built from model files."""
