"""Where a detector fails and what that costs: detections on one split, analysed in numpy, and the page that shows it."""
