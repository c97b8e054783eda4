"""The client library: how programs and the mount speak with routers and peers."""
