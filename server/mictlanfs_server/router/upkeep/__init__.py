"""The router's care for copies: healing, emptying peers, moving, giving up what is too much."""
