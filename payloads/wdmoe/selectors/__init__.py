"""The kinds of expert selection, one file each; :mod:`payloads.wdmoe.gating` finds them by name."""
