"""Who gets how much of the band: the kinds of allocation and the min-max problem behind two of them."""
