"""What every service on a board shares, whatever it computes."""
