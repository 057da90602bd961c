"""Parameter servers at run time: shards that step, threads that serve them, and clients that ask."""

from tightwire.runtime.server.client import Client, LocalClient, RemoteClient
from tightwire.runtime.server.messages import Post
from tightwire.runtime.server.parcel import Parcel
from tightwire.runtime.server.service import Service
from tightwire.runtime.server.shard import Shard

__all__ = ["Client", "LocalClient", "Parcel", "Post", "RemoteClient", "Service", "Shard"]
