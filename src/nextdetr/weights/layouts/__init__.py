"""The layouts of weights files: how each is recognised, under which licence it stands, and how it becomes ours."""
