"""Where a peer's larger chunks lie: one narrow protocol, several forms."""
