"""The link daemon: it alone owns the queueing disciplines of the base station's interface.

model.py      what a rate means for a message: frames, buckets, expected times (pure)
plan.py       links -> classes, leaves and filters, and the way from one plan to the next (pure)
found.py      the queueing discipline that was there before, and whether it can be put back (pure)
state.py      the state file, written before the first change
tc.py         netlink messages of queueing disciplines: batches, raw options
kernel.py     the one module that touches the kernel (pyroute2 and tc.py)
shaper.py     set, re-rate, clear, restore
daemon.py     the service behind ``linkd.sock``
guard.py      the process that outlives it by a moment when it is killed
client.py     what talks to it
respond.py    the devices' end of a probe; probe.py is the base station's, hello.py their handshake
"""
