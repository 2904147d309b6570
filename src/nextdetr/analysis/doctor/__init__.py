"""``nextdetr doctor``: find problems of a data set before training on it."""
