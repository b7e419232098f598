"""Content-addressed objects: splitting a checkpoint into them."""
