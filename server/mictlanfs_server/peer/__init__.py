"""The peer process: immutable chunks on a back end, with an index."""
