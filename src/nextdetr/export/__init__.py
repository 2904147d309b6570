"""Export to other runtimes, and the gate that checks exported files."""
