"""Logging of a run in progress: TensorBoard, MLflow, Weights & Biases; for ``train --log``."""
