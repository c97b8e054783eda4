"""The server side of MictlanFS: the router, the peers and what starts them."""
