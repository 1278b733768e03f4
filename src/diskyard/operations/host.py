"""getHostInfo."""

from __future__ import annotations

from diskyard.caller import may_use
from diskyard.model.options import wire_name
from diskyard.model.requests import GetHostInfo
from diskyard.model.results import ConnectionInfo, FormatInfo, HostInfo
from diskyard.operations.engine import Engine
from diskyard.storage.registry import FORMATS
from diskyard.version import version


def get_host_info(engine: Engine, _request: GetHostInfo) -> HostInfo:
    """This host's id, version, formats and connections. No storage is asked."""
    formats = tuple(
        FormatInfo(
            name=found.name,
            parameters=dict(found.parameters),
            capabilities={wire_name(key): can for key, can in found.capabilities.items()},
        )
        for found in FORMATS.values()
    )
    connections = tuple(
        ConnectionInfo(repo_id=repo_id, repo_format=format_name, connection_parameters=parameters)
        for repo_id, (format_name, parameters) in engine.connections.remembered().items()
        if may_use(repo_id)
    )
    return HostInfo(
        host_id=engine.host.identity.host_id, version=version(), formats=formats, connections=connections
    )
