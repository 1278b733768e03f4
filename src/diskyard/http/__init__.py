"""The API over HTTP: an ASGI application on a service."""
