"""The metadata store: names, inodes, extents, chunks, sessions and peers of a space.

`base` is the interface that the router uses; `apply` and its neighbours hold the POSIX logic over
rows; `sqlite` is the embedded form.
"""
