"""supervision, imported without its advice to install OpenCV: NumPy does all that is asked of it here.

Its import takes longer than a prediction, so that only modules that hand its types to users or to other packages import
this one, and no module that every prediction needs does so at its top.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
    import supervision as sv

__all__ = ["sv"]
