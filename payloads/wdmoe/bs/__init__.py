"""The base station: the model without its experts, trials and quality passes, and the devices as it sees them."""
