"""What predictions are written to: one protocol, one file a format."""
