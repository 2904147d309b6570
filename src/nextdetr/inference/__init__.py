"""Prediction: sources in, detections and files out; needs no training code."""
