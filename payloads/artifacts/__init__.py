"""Content-addressed objects: served by the base station, pulled by devices."""
