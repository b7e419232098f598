"""Frames, sockets, authentication and clocks of the data plane."""
