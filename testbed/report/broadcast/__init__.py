"""The report of a semantic broadcast: performance regions, ladders, ablations, example images, latency and energy.

The page around it (header, trust strip, sections, tables) is that of every report.
"""
