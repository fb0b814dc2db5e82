"""The gRPC service. `run_server(models, address=...)` blocks; `Server` is for use inside an event loop."""
from .server import Server, run_server, serve

__all__ = ["Server", "run_server", "serve"]
