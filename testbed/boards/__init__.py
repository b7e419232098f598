"""The kinds of Jetson and the releases of their system, read from the data files in ``data``."""
