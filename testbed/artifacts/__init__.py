"""Content-addressed objects, sharding and placement."""
