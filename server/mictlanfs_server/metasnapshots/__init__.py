"""Snapshots of the metadata on the peers: made by the router, and restored from peers alone."""
