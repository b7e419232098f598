"""Loggers of a board: power, jtop, the wireless link."""
