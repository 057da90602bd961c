"""Parameter servers at run time: shards that step, threads that serve them, and clients that ask."""

from tightwire.architecture.server.client import Client, LocalClient, RemoteClient
from tightwire.architecture.server.messages import Post
from tightwire.architecture.server.parcel import Parcel
from tightwire.architecture.server.service import Service
from tightwire.architecture.server.shard import Shard

__all__ = ["Client", "LocalClient", "Parcel", "Post", "RemoteClient", "Service", "Shard"]
