"""supervision, imported without its advice to install OpenCV: NumPy does all that is asked of it here."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
    import supervision as sv

__all__ = ["sv"]
