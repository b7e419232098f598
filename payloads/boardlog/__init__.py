"""Power and jtop loggers of a board."""
