"""Error analysis: detections on one split, analysed in NumPy, and the page that shows the results."""
