"""Services on a host, under systemd or a small supervisor, owned by a lease."""
