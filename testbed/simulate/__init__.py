"""The digital twin of a campaign: the same trials with no hosts, by the policies that the base station runs.

routing.py    what the routers ask for: recorded from the model, or drawn at a shape without weights
recorder.py   records it
world.py      campaign, lab, calibration and routing -> all that a trial follows from
engine.py     one trial on a virtual clock
tables.py     what happened in it -> the tables of a run
run.py        a folder under results/ like that of a run, with its report
"""
