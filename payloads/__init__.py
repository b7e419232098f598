"""What runs on the fleet: Python 3.8 syntax, the standard library and (for models) torch. Never imports testbed."""
