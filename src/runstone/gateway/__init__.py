"""Shows the log and takes commands, over HTTP, Server-Sent Events and WebSocket."""
