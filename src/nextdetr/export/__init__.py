"""From a trained detector to a file of another runtime, and the gate that scores what was exported."""
