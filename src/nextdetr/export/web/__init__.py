"""A folder, or a single file, that runs a detector in the browser: graph, onnxruntime-web, and the server's page."""
