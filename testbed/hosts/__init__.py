"""How a command or a file reaches a host."""
