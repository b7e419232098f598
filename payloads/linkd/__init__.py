"""The link daemon: it alone owns the queueing disciplines of the base station's interface.

model.py      what a rate means for a message: frames, buckets, expected times (pure)
links.py      the links that are asked for, as JSON says them (pure)
channel.py    a channel over time and the rule that makes rates of it (pure; rule.py)
asked.py      links or a channel, and shares of the band -> the rates in force (pure)
player.py     when a channel's next block is due (pure)
plan.py       links -> classes, leaves and filters, and the way from one plan to the next (pure)
found.py      the queueing discipline that was there before, and whether it can be put back (pure)
state.py      the state file, written before the first change
history.py    every change of a rate and samples of the counters, with a bound
netlink.py    netlink: attributes, batches, lists
tc.py         messages of queueing disciplines, classes and filters; rtnl.py those of interfaces and routes
kernel.py     the one module that changes interfaces
capabilities.py  what this host's kernel can do, by doing it; which leaf follows from it
shaper.py     set, re-rate, clear, restore; in_path.py holds its user-space line
line.py       the user-space line; line_schedule.py (pure), line_taps.py, line_process.py
pacing.py     the same without a kernel: rates for those who own the sockets
session.py    what is done when a client asks, and when time comes
clients.py    the clients of the daemon's socket
daemon.py     the service behind ``linkd.sock``
guard.py      the process that outlives it by a moment when it is killed
client.py     what talks to it
respond.py    the devices' end of a probe; probe.py is the base station's, hello.py their handshake
"""
