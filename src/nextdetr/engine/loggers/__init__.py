"""Where a run is logged while it is under way: TensorBoard, MLflow, Weights & Biases; for ``train --log``."""
