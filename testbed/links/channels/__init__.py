"""Channel models: what makes the rates of wireless links over time, by the physics that payloads.linkd plays.

pathloss.py   free space, log-distance and 3GPP TR 38.901, with their ranges and lines of sight
tables.py     modulation and coding: 5G's CQI tables and Wi-Fi 6
traces.py     recorded rates, CSV and Mahimahi
budget.py     from where a device stands to its mean SNR
draw.py       a scenario and a repeat -> payloads.linkd.channel.Channel; its rates as arrays: payloads.station.rates
check*.py     a scenario's mistakes, with their places
describe.py   a channel in a few figures; preview.py: those of a whole campaign; export.py: a channel as traces
"""

from payloads.station.rates import rates_mbit
from testbed.links.channels.budget import Budget
from testbed.links.channels.describe import describe
from testbed.links.channels.draw import budgets_of, channel_of

__all__ = ["Budget", "budgets_of", "channel_of", "describe", "rates_mbit"]
