"""The router process: the authority on names, metadata, sessions and the peer map."""
