"""The cache of a v4 door: whole values in memory, by three policies behind one interface."""
