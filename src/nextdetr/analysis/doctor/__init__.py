"""``nextdetr doctor``: what is wrong with a data set, before a training is spent on it."""
