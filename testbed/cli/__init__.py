"""The commands: parse, call one function, print."""

import gc

# Python looks for garbage after each 700 new objects, and the start of a command makes hundreds of thousands that stay:
# a fifth of the time until it does something would go into looking.
gc.set_threshold(100_000, 20, 20)
