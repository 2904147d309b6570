"""Analysis of backbones (feature quality, channel collapse) and of data sets."""
