"""Power and clocks of a run, and the energy that follows from them."""
