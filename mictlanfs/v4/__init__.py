"""The MictlanX v4 HTTP API: names, tags, messages and errors of both ends, and a client of it."""
