"""The MictlanX v4 door: the HTTP interface of MictlanX over the same space."""
